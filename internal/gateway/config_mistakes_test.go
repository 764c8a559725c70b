package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"
)

// testPair is a certificate and its key, PEM.
func testPair(t testing.TB) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

// Each line of testdata/mistakes.txt is one configuration, a tab, and what is
// wrong with it: "where: field: part of the text".
func TestMistakes(t *testing.T) {
	data, err := os.ReadFile("testdata/mistakes.txt")
	if err != nil {
		t.Fatal(err)
	}
	dir := site(t)
	cert, key := testPair(t)
	otherCert, _ := testPair(t)
	write(t, dir, "c.pem", cert, 0o644)
	write(t, dir, "k.pem", key, 0o600)
	write(t, dir, "other.pem", otherCert, 0o644)

	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		text, want, ok := strings.Cut(line, "\t")
		if !ok {
			t.Fatalf("no tab in %q", line)
		}
		text = strings.ReplaceAll(text, `\n`, "\n")
		if !strings.Contains(text, "identity: ") || strings.Contains(text, "classes:") {
			text += "\n" + minimal
		}
		t.Run(text, func(t *testing.T) {
			_, err := loadText(dir, text)
			ms, ok := errors.AsType[Mistakes](err)
			if !ok || len(ms) != 1 {
				t.Fatalf("got %d mistakes, want one:\n%v\nwant %s", len(ms), err, want)
			}
			where, part, _ := strings.Cut(strings.TrimSpace(want), ": ")
			if got := ms[0].Error(); ms[0].Where != where || !strings.HasPrefix(got, where+": ") || !containsAll(got, part) {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			for _, leak := range []string{"gateway.", "reflect", "yaml:", "unmarshal", "int64", "strconv", "\n"} {
				if strings.Contains(ms[0].Text, leak) {
					t.Errorf("%q leaks into %q", leak, ms[0])
				}
			}
		})
	}
}

// containsAll reports whether the parts, parted by " … ", are in s in order.
func containsAll(s, parts string) bool {
	for part := range strings.SplitSeq(parts, " … ") {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return true
}

func TestAllMistakesAtOnce(t *testing.T) {
	_, err := loadText(site(t), `
hub:
  heartbeet: 30s
  heartbeat: 10
mqtt:
  prefix: "a/#"
  embedded: {listen: 1883}
  external: {url: ""}
firmware: {listen: "0.0.0.0:80"}
devices: [{match: "[", class: sleepy}]
colour: blue
`, "GANGLION_HUB_ULR=x", "GANGLION_LOG_LEVEL=loud", "PATH=/bin")
	want := []string{
		"g.yaml: identity: nothing given",
		"g.yaml:3:3: hub.heartbeet: unknown key; did you mean heartbeat?",
		"g.yaml:4:14: hub.heartbeat: found 10 without a unit; write 10s if you mean seconds",
		"g.yaml:5:1: mqtt: found embedded and external; keep exactly one",
		`g.yaml:6:11: mqtt.prefix: found "a/#"`,
		"g.yaml:7:22: mqtt.embedded.listen: found the number 1883, want HOST:PORT",
		"g.yaml:8:19: mqtt.external.url: found nothing",
		`g.yaml:9:20: firmware.listen: found "0.0.0.0:80", but this version has no firmware server; delete the line or write "127.0.0.1:8080"`,
		`g.yaml:10:19: devices[0].match: found "[", which is no pattern`,
		`g.yaml:10:31: devices[0].class: found "sleepy"; the classes are default`,
		"g.yaml:11:1: colour: unknown key; the keys here are id, state_dir, hub,",
		"GANGLION_HUB_ULR: unknown variable; did you mean GANGLION_HUB_URL?",
		`GANGLION_LOG_LEVEL: log.level: found "loud", want debug, info, warn, error`,
	}
	if err == nil {
		t.Fatal("no mistake found")
	}
	got := strings.Split(err.Error(), "\n")
	for _, w := range want {
		found := false
		for _, g := range got {
			found = found || strings.HasPrefix(g, w)
		}
		if !found {
			t.Errorf("missing: %s", w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d mistakes, want %d:\n%s", len(got), len(want), err)
	}
	if m, ok := errors.AsType[Mistake](err); !ok || m.Field == "" {
		t.Errorf("errors.As found %v", m)
	}
}

func TestTooManyMistakes(t *testing.T) {
	_, err := loadText(site(t), minimal+strings.Repeat("? [x]\n: y\n", 80))
	if lines := strings.Split(err.Error(), "\n"); len(lines) != maxMistakes+1 || lines[maxMistakes] != "and 30 more mistakes" {
		t.Errorf("%d lines, the last %q", len(lines), lines[len(lines)-1])
	}
}

func TestTooManyEntries(t *testing.T) {
	for field, text := range map[string]string{
		"classes": "classes: {" + strings.Repeat("a: {}, ", maxClasses+1) + "}\n",
		"devices": "devices: [" + strings.Repeat("{match: a}, ", maxList+1) + "]\n",
	} {
		_, err := loadText(site(t), minimal+text)
		ms, ok := errors.AsType[Mistakes](err)
		if !ok || len(ms) != 1 || ms[0].Field != field || !strings.Contains(ms[0].Text, "want at most") {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

// What Validate alone can find: a Config that no file made.
func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		field  string
		change func(*Config)
	}{
		{"mqtt", func(c *Config) { c.MQTT.Embedded = nil }},
		{"state_dir", func(c *Config) { c.StateDir = "" }},
		{"classes", func(c *Config) { c.Classes = nil }},
		{"id", func(c *Config) { c.ID = "a\nb" }},
		{"identity.shared_secret.secret_file", func(c *Config) { c.Identity = Identity{SharedSecret: &SharedSecret{Key: "nhp_a"}} }},
		{"firmware.trust_hub_keys", func(c *Config) { c.Firmware.TrustHubKeys = new(bool) }},
	} {
		cfg := Default()
		cfg.Identity.Directory = &Directory{Path: "devices"}
		tt.change(&cfg)
		ms, ok := errors.AsType[Mistakes](cfg.Validate())
		if !ok || len(ms) != 1 || ms[0].Field != tt.field || ms[0].Where != "" {
			t.Errorf("%s: got %v", tt.field, ms)
		}
	}
}
