package gateway

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// example is config.example.yaml, which says what a default is by beginning
// its line with #key, and what an alternative is by "# key".
func example(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile("../../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var (
	commentedDefault     = regexp.MustCompile(`(?m)^( *)#([a-z_]+:)`)
	commentedAlternative = regexp.MustCompile(`(?m)^( *)# ( *(?:- |[a-z_]+:(?: |$)).*)$`)
)

func TestExampleLoads(t *testing.T) {
	dir := site(t)
	write(t, dir, "config.example.yaml", example(t), 0o644)
	cfg, err := Load(filepath.Join(dir, "config.example.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	wantDefaults(t, dir, cfg)
}

// Every commented default is the one in the code.
func TestExampleDefaults(t *testing.T) {
	dir := site(t)
	text := commentedDefault.ReplaceAllString(example(t), "$1$2")
	r := newReport("g.yaml")
	cfg, err := load(r, []byte(text), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantDefaults(t, dir, cfg)

	// And every key is there: given as a default or, below, an alternative.
	alternatives := alternativeKeys(t)
	all := everything()
	leaves(reflect.ValueOf(&all).Elem(), "", func(l leaf) {
		if _, ok := r.given[l.field]; !ok && !alternatives[l.field] {
			t.Errorf("%s is not in the example", l.field)
		}
	})
}

func wantDefaults(t *testing.T, dir string, got Config) {
	t.Helper()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.ID = host
	want.Identity.Directory = &Directory{Path: filepath.Join(dir, "devices")}
	got.Devices, got.Onboarding.Allow, got.Firmware.Keys, got.Firmware.AllowHosts = nilled(got.Devices), nilled(got.Onboarding.Allow), nilled(got.Firmware.Keys), nilled(got.Firmware.AllowHosts)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// nilled is s, or nil if it is empty: [] in the file means the same.
func nilled[E any](s []E) []E {
	if len(s) == 0 {
		return nil
	}
	return s
}

// alternativeKeys are the keys of the alternatives the example shows. All of
// its text must decode with them too, were they not alternatives.
func alternativeKeys(t *testing.T) map[string]bool {
	t.Helper()
	text := commentedDefault.ReplaceAllString(example(t), "$1$2")
	text = strings.Replace(text, "devices: []\n", "", 1) // its alternative is a list
	text = commentedAlternative.ReplaceAllString(text, "$1$2")
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	r := newReport("g.yaml")
	cfg := Default()
	r.decode(doc.Content[0], reflect.ValueOf(&cfg).Elem(), "", "")
	if err := r.err(); err != nil {
		t.Error(err)
	}
	if cfg.MQTT.External == nil || cfg.Identity.SharedSecret == nil || cfg.Identity.CA == nil ||
		cfg.Classes[defaultClass].Identity == nil || len(cfg.Devices) != 1 {
		t.Errorf("an alternative was not found: %+v", cfg)
	}
	ca := CA{}
	if ca.setDefaults(); cfg.Identity.CA.Validity != ca.Validity {
		t.Errorf("validity %s, want %s", cfg.Identity.CA.Validity, ca.Validity)
	}
	keys := map[string]bool{}
	for field := range r.given {
		keys[field] = true
	}
	return keys
}

// The alternatives load in place of what they replace.
func TestExampleAlternatives(t *testing.T) {
	dir := site(t)
	text := example(t)
	embedded := regexp.MustCompile(`(?m)^  embedded:$`)
	text = embedded.ReplaceAllString(text, "  # embedded:")
	text = strings.ReplaceAll(text, "    tls:\n", "") // of embedded, and of firmware, all default
	text = strings.ReplaceAll(text, "    websocket:\n", "")
	text = strings.Replace(text, "  directory:\n    path: devices ", "  # ", 1)
	in := func(from, to string) {
		i := strings.Index(text, from)
		j := i + strings.Index(text[i:], to)
		text = text[:i] + commentedAlternative.ReplaceAllString(text[i:j], "$1$2") + text[j:]
	}
	in("  # shared_secret:", "  #\n")
	in("  # external:", "\n# How unknown")
	in("# devices:", "\n# To standard")
	cfg, err := loadText(dir, text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if cfg.Identity.Directory != nil || cfg.Identity.SharedSecret.Secret != "s3cret" || cfg.MQTT.Embedded != nil ||
		cfg.MQTT.External.ClientID != "ganglion-site7" || len(cfg.Devices) != 1 {
		t.Errorf("got %+v", cfg)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte(commentedDefault.ReplaceAllString(example(f), "$1$2")))
	f.Add([]byte("identity: {shared_secret: {key: nhp_a, secret_file: product.secret}}\nmqtt: {external: {url: mqtt://localhost}}\n"))
	f.Add([]byte("classes: {a: {deadline: {offer: 1h}}}\ndevices: [{match: 'a*', class: a}, {match: b}]\n"))
	f.Add([]byte("a: &x [*x]\n<<: *x\n? {b: c}\n: !!binary d\n---\n"))
	f.Add([]byte("hub: {heartbeat: 1e99h, dials_per_second: .NaN}\njournal: {max_bytes: 99999999999999999999GiB}\n"))
	f.Add([]byte("id: \"\\u2028\\u0085\\0\"\n\"k\\ney\": 1\n"))
	dir := site(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := loadText(dir, string(data))
		if err == nil {
			if err := cfg.Validate(); err != nil {
				t.Errorf("loaded, and then invalid: %v", err)
			}
			return
		}
		ms, ok := err.(Mistakes)
		if !ok || len(ms) == 0 {
			t.Fatalf("got %T %v, want Mistakes", err, err)
		}
		for _, m := range ms {
			if line := m.Error(); strings.ContainsAny(line, "\n\r\x00\u0085\u2028") || m.Text == "" || !strings.HasPrefix(line, "g.yaml") {
				t.Errorf("not a line to tell: %q", line)
			}
		}
	})
}
