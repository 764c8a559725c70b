package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// root is the module's directory, seen from this package's.
const root = "../.."

const module = "ganglion"

// floors: a package imports only packages of a lower floor.
var floors = map[string]int{
	"cmd/ganglion":     4,
	"internal/gateway": 3,
	"web":              2,
	"bridge":           1,
	"phoenix":          0,
	"mqtt":             0,
	"identity":         0,
	"firmware":         0,
}

// beside the floors stand the judges and the tools; each imports of ours only
// what is listed. Commands, and tests on any floor, may use them.
var beside = map[string][]string{
	"internal/hubtest":      {"internal/hubtest/auth"},
	"internal/hubtest/auth": nil,
	"internal/device":       nil,
	"internal/memnet":       nil,
	"internal/arch":         nil,
}

// thirdParty: a module is imported by the packages that own it and no others,
// so that replacing it means changing one place.
var thirdParty = map[string][]string{
	"github.com/gorilla/websocket":        {"phoenix", "internal/hubtest"},
	"github.com/mochi-mqtt/server/v2":     {"mqtt"},
	"github.com/eclipse/paho.mqtt.golang": {"mqtt"},
	"golang.org/x/time":                   {"bridge"},
	"golang.org/x/crypto":                 {"firmware"},
	"gopkg.in/yaml.v3":                    {"internal/gateway"},
	"github.com/prometheus/client_golang": {"web"},
	"github.com/spf13/cobra":              {"cmd/ganglion"},
	"github.com/coreos/go-systemd/v22":    {"cmd/ganglion", "internal/gateway"},
}

// A pkg is what `go list` says about one package.
type pkg struct {
	ImportPath, Name, Doc              string
	Standard                           bool
	Module                             *struct{ Path string }
	GoFiles, IgnoredGoFiles            []string
	Imports, TestImports, XTestImports []string
}

// list returns every package that builds into the module or its tests.
func list(t *testing.T) map[string]pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-test", "-json", "./...")
	cmd.Dir = root
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Fatalf("go list: %v\n%s", err, exit.Stderr)
	}
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]pkg{}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
}

// ours are the packages of this module, by their directory.
func ours(all map[string]pkg) map[string]pkg {
	mine := map[string]pkg{}
	for importPath, p := range all {
		dir, ok := strings.CutPrefix(importPath, module+"/")
		// Beside each package go list names those made to test it:
		// "p.test", "p [p.test]" and "p_test [p.test]".
		if ok && !strings.HasSuffix(dir, ".test") && !strings.Contains(dir, " ") {
			mine[dir] = p
		}
	}
	return mine
}

func TestImports(t *testing.T) {
	all := list(t)
	used := map[string]bool{}
	for dir, p := range ours(all) {
		if _, ok := floors[dir]; !ok {
			if _, ok := beside[dir]; !ok {
				t.Errorf("%s stands on no floor; give it a place in this test", dir)
				continue
			}
		}
		for _, i := range p.Imports {
			if err := mayImport(all, dir, i, used); err != "" {
				t.Errorf("%s imports %s: %s", dir, i, err)
			}
		}
		for _, i := range slices.Concat(p.TestImports, p.XTestImports) {
			if err := mayTestWith(all, dir, i, used); err != "" {
				t.Errorf("a test of %s imports %s: %s", dir, i, err)
			}
		}
	}
	for m := range thirdParty {
		if !used[m] {
			t.Errorf("nothing imports %s; take it out of this test", m)
		}
	}
}

// mayImport says why dir may not import i, or "".
func mayImport(all map[string]pkg, dir, i string, used map[string]bool) string {
	if of, ok := strings.CutPrefix(i, module+"/"); ok {
		return mayImportOurs(dir, of)
	}
	p, ok := all[i]
	if i == "C" || ok && p.Standard {
		return ""
	}
	if !ok || p.Module == nil {
		return "it belongs to no module"
	}
	used[p.Module.Path] = true
	owners, ok := thirdParty[p.Module.Path]
	switch {
	case !ok:
		return "no package owns " + p.Module.Path
	case !slices.Contains(owners, dir):
		return "only " + strings.Join(owners, " and ") + " may"
	}
	return ""
}

func mayImportOurs(dir, of string) string {
	if only, ok := beside[dir]; ok {
		if !slices.Contains(only, of) {
			return "a package beside the floors imports nothing of the gateway"
		}
		return ""
	}
	if _, ok := beside[of]; ok {
		if floors[dir] < floors["cmd/ganglion"] {
			return "it stands beside the floors, for commands and tests"
		}
		return ""
	}
	if floors[of] >= floors[dir] {
		return "imports point down"
	}
	return ""
}

// mayTestWith says why a test of dir may not import i, or "". Tests may import
// what their package may and the package itself; those on the floors may use
// what stands beside them, and those beside only the network in memory: a
// stand-in that shared code with what it judges would share its mistakes.
func mayTestWith(all map[string]pkg, dir, i string, used map[string]bool) string {
	of, ok := strings.CutPrefix(i, module+"/")
	if !ok {
		return mayImport(all, dir, i, used)
	}
	_, tool := beside[of]
	_, judge := beside[dir]
	switch {
	case of == dir, of == "internal/memnet":
		return ""
	case dir == "internal/arch":
		return "" // compares everything with everything
	case tool && !judge:
		return ""
	}
	return mayImportOurs(dir, of)
}

// TestPackages: a package says what it is for, and its name says it too.
func TestPackages(t *testing.T) {
	for dir, p := range ours(list(t)) {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", dir)
		}
		for _, name := range []string{p.Name, path.Base(dir)} {
			switch name {
			case "util", "utils", "common", "helper", "helpers", "type", "types", "model", "models", "misc", "shared":
				t.Errorf("%s: the name says nothing", dir)
			}
		}
	}
}
