package arch

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ganglion/bridge"
)

// A table is one of a Markdown document: its rows by the code in their first
// cell.
type table map[string][]string

// tableOf reads the table whose first column is headed heading.
func tableOf(t *testing.T, document, heading string) table {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, document))
	if err != nil {
		t.Fatal(err)
	}
	var rows table
	for i, line := range strings.Split(string(text), "\n") {
		cells, ok := cells(line)
		switch {
		case rows == nil && (!ok || cells[0] != heading):
		case rows == nil:
			rows = table{}
		case !ok:
			return rows
		case strings.HasPrefix(cells[0], "-"):
		default:
			name := code(cells[0])
			if _, twice := rows[name]; twice || name == "" {
				t.Errorf("%s:%d: a row needs a name of its own in backticks", document, i+1)
			}
			rows[name] = cells
		}
	}
	t.Fatalf("%s: no table is headed %q, or none ends", document, heading)
	return nil
}

// cells splits a row at the bars that no backslash precedes.
func cells(line string) ([]string, bool) {
	line, ok := strings.CutPrefix(line, "|")
	if !ok {
		return nil, false
	}
	line = strings.TrimSuffix(strings.TrimSpace(line), "|")
	parts := strings.Split(strings.ReplaceAll(line, `\|`, "\x00"), "|")
	for i, p := range parts {
		parts[i] = strings.TrimSpace(strings.ReplaceAll(p, "\x00", "|"))
	}
	return parts, true
}

var inBackticks = regexp.MustCompile("`([^`]+)`")

// code is the first text in backticks, or "".
func code(cell string) string {
	if m := inBackticks.FindStringSubmatch(cell); m != nil {
		return m[1]
	}
	return ""
}

// contractDocument is what firmware engineers read.
const contractDocument = "docs/contract.md"

// TestContractRows: the document and the program name the same things, and say
// the same about them. Columns of up: name, short form, JSON form, becomes, if
// NervesHub is out of reach, largest payload. Of down: name, payload, from.
func TestContractRows(t *testing.T) {
	up, down := tableOf(t, contractDocument, "`up/` name"), tableOf(t, contractDocument, "`down/` name")
	for _, r := range bridge.Contract() {
		if r.Name == "" {
			continue // the gateway answers it itself
		}
		if !r.Up {
			switch row, ok := down[r.Name]; {
			case !ok:
				t.Errorf("%s: down/%s has no row", contractDocument, r.Name)
			case r.Event != "" && !strings.Contains(row[2], "`"+r.Event+"`"):
				t.Errorf("%s: down/%s comes from %s (found %q)", contractDocument, r.Name, r.Event, row[2])
			}
			delete(down, r.Name)
			continue
		}
		row, ok := up[r.Name]
		if !ok {
			t.Errorf("%s: up/%s has no row", contractDocument, r.Name)
			continue
		}
		delete(up, r.Name)
		if got := code(row[3]); got != r.Event {
			t.Errorf("%s: up/%s becomes %q, not %q", contractDocument, r.Name, r.Event, got)
		}
		if got, want := strings.Contains(row[4], "**durable**"), r.Durable; got != want {
			t.Errorf("%s: up/%s: durable is %t in the program", contractDocument, r.Name, want)
		}
		if got, want := strings.Contains(row[4], "newest wins"), r.Latest; got != want {
			t.Errorf("%s: up/%s: that the newest wins is %t in the program", contractDocument, r.Name, want)
		}
		if got, want := row[5], fmt.Sprint(r.Limit); got != want {
			t.Errorf("%s: up/%s takes %s bytes, not %q", contractDocument, r.Name, want, got)
		}
	}
	for name := range up {
		t.Errorf("%s: the program knows no up/%s", contractDocument, name)
	}
	for name := range down {
		t.Errorf("%s: the program knows no down/%s", contractDocument, name)
	}
}

func TestContractCodes(t *testing.T) {
	documented := tableOf(t, contractDocument, "Code")
	codes := bridge.Codes()
	for _, c := range codes {
		if documented[c] == nil {
			t.Errorf("%s: the error code %s has no row", contractDocument, c)
		}
	}
	for c := range documented {
		if !slices.Contains(codes, c) {
			t.Errorf("%s: the program has no error code %s", contractDocument, c)
		}
	}
}
