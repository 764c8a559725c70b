package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ganglion/firmware"
)

// The samples that package firmware is tested with, and the keys that signed.
const (
	images   = "../../firmware/testdata/"
	fwupKey  = "cXkvUgMjtRyHZcxBQcIVi8nVBmnNX6J1EkRgyLeTcVQ="
	otherKey = "P5Afk/xLSjY6O9iE0CwjKv2ZBNteKKm47hUnJQ8pYjM="
	efuse    = "0fe48764b895084623f74c55d9b123c2f098d32d4fa25a8a045acc6aafe3a57c"
)

// secureBootKey is the PEM of the key with digest efuse.
func secureBootKey(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(images + "images.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Keys []struct {
			Text   string
			Digest string `json:"efuse_digest_sha256"`
		}
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	for _, k := range all.Keys {
		if k.Digest == efuse {
			return k.Text
		}
	}
	t.Fatal("images.json has no such key")
	return ""
}

// An imageCase is a sample inspected with some keys.
type imageCase struct {
	file      string
	keys      []string
	code      int
	want      inspection // Reason a part of it
	resources []string
}

func imageCases(ring string) []imageCase {
	return []imageCase{
		{"fw/good-two-resources.fw", []string{fwupKey}, 0, inspection{Verdict: firmware.OK, Kind: firmware.Fwup, Key: fwupKey, Reason: "trusted key",
			UUID: "52320663-ca33-5585-c56d-09d19707d669", Product: "gw-sensor", Version: "1.3.3", Platform: "stm32f4", Architecture: "arm"},
			[]string{"app.bin", "bootloader.bin"}},
		{"fw/two-keys-in-org.fw", []string{ring}, 0, inspection{Verdict: firmware.OK, Kind: firmware.Fwup, Key: otherKey,
			UUID: "b6b80551-f074-54bf-5473-21df073c9f13", Product: "gw-sensor", Version: "1.2.3", Platform: "stm32f4", Architecture: "arm"},
			[]string{"app.bin"}},
		{"esp/signed-small-good.bin", []string{otherKey, ring}, 0, inspection{Verdict: firmware.OK, Kind: firmware.ESP, Key: efuse,
			UUID: "32e29c72-7ed9-dcab-4038-dad67cc32529", Product: "gw_node", Version: "1.3.3", Platform: "esp32s3", Architecture: "xtensa"},
			[]string{"image"}},
		{"esp/good-padded-to-4k.bin", nil, 0, inspection{Verdict: firmware.OK, Kind: firmware.ESP, Reason: "not signed",
			UUID: "32e29c72-7ed9-dcab-4038-dad67cc32529", Product: "gw_node", Version: "1.3.3", Platform: "esp32s3", Architecture: "xtensa"},
			[]string{"image"}},
		{"fw/good-two-resources.fw", nil, 1, inspection{Verdict: firmware.UnknownKey, Kind: firmware.Fwup, Reason: "no Ed25519 key is trusted"}, nil},
		{"fw/good-two-resources.fw", []string{otherKey}, 1, inspection{Verdict: firmware.BadSignature, Kind: firmware.Fwup}, nil},
		{"fw/zip-bomb-lying-sizes.fw", []string{fwupKey}, 1, inspection{Verdict: firmware.TooBig, Kind: firmware.Fwup, Key: fwupKey,
			UUID: "-", Product: "gw-sensor", Version: "-", Platform: "stm32f4", Architecture: "arm"}, nil},
		{"fw/empty-file.fw", nil, 1, inspection{Verdict: firmware.Malformed, Reason: "empty"}, nil},
		{"fw/delta.delta.fw", []string{fwupKey}, 1, inspection{Verdict: firmware.Unsupported, Kind: firmware.Fwup, Key: fwupKey, Reason: "delta",
			UUID: "086135bb-e984-5ecc-6219-ccc895525aef", Product: "gw-sensor", Version: "2.2.4", Platform: "stm32f4", Architecture: "arm"}, nil},
	}
}

func TestImageInspect(t *testing.T) {
	// A key of each kind, as somebody would keep them.
	ring := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(ring, []byte(otherKey+"\n\n"+secureBootKey(t)+fwupKey), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range imageCases(ring) {
		args := []string{"image", "inspect", "--json", images + c.file}
		for _, k := range c.keys {
			args = append(args, "--key", k)
		}
		child := start(t, nil, args...)
		if code := child.exit(patience); code != c.code {
			t.Errorf("%s: exit code %d, not %d", c.file, code, c.code)
		}
		var got inspection
		if err := json.Unmarshal([]byte(child.out.String()), &got); err != nil {
			t.Errorf("%s: %v: %s", c.file, err, child.out)
			continue
		}
		var names []string
		for _, r := range got.Resources {
			names = append(names, r.Name)
			if r.Size <= 0 || len(r.SHA256) != 64 {
				t.Errorf("%s: %+v", c.file, r)
			}
		}
		if strings.Join(names, " ") != strings.Join(c.resources, " ") || got.Resources == nil {
			t.Errorf("%s: resources %q, not %q", c.file, names, c.resources)
		}
		if c.want.UUID == "-" { // not in the list of samples
			c.want.UUID, c.want.Version = got.UUID, got.Version
		}
		if !strings.Contains(got.Reason, c.want.Reason) || got.Reason == "" {
			t.Errorf("%s: reason %q, not …%s…", c.file, got.Reason, c.want.Reason)
		}
		if told := child.log.String(); (told == "") != (c.code == 0) || !strings.Contains(told, string(got.Verdict)) && c.code != 0 {
			t.Errorf("%s: tells %q", c.file, told)
		}
		got.Resources, got.Reason, c.want.Reason = nil, "", ""
		if g, w := jsonOf(t, got), jsonOf(t, c.want); g != w {
			t.Errorf("%s:\nfound  %s\nshould %s", c.file, g, w)
		}
	}
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestImageInspectForPeople(t *testing.T) {
	c := start(t, nil, "image", "inspect", "--key", fwupKey, images+"fw/archive.fw")
	if code := c.exit(patience); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, line := range []string{"verdict       ok\n", "key           " + fwupKey + "\n", "resource      notes.txt, 12 bytes, SHA-256 "} {
		if !strings.Contains(c.out.String(), line) {
			t.Errorf("%q is missing", line)
		}
	}
}

func TestImageWrongUse(t *testing.T) {
	dir := t.TempDir()
	good := images + "fw/archive.fw"
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		says string
	}{
		{nil, "name a command: inspect"},
		{[]string{"list-all"}, `no command "list-all"`},
		{[]string{"inspect"}, "takes one file (found 0)"},
		{[]string{"inspect", good, good}, "takes one file (found 2)"},
		{[]string{"inspect", "--bogus", good}, "--bogus"},
		{[]string{"inspect", filepath.Join(dir, "none")}, "no such file"},
		{[]string{"inspect", dir}, "is not a regular file"},
		{[]string{"inspect", "--key", "AAAA", good}, `"AAAA" is neither a public key nor a file`},
		{[]string{"inspect", "--key", empty, good}, "is empty"},
		{[]string{"inspect", "--key", good, good}, "key 1"},
	} {
		child := start(t, nil, append([]string{"image"}, c.args...)...)
		if code := child.exit(patience); code != exitUsage || !strings.Contains(child.log.String(), c.says) {
			t.Errorf("image %q: exit code %d, not %d; should say …%s…", c.args, code, exitUsage, c.says)
		}
	}
}
