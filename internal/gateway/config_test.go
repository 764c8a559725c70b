package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// minimal is the shortest configuration there is.
const minimal = "identity: {directory: {path: devices}}\n"

// site makes a directory with what the tests' configurations name.
func site(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"devices", "other-devices"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"product.secret": "s3cret\n", "open.secret": "s3cret", "empty.secret": "\n"} {
		write(t, dir, name, text, 0o600)
	}
	write(t, dir, "open.secret", "s3cret", 0o644)
	return dir
}

func write(t testing.TB, dir, name, text string, mode os.FileMode) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return file
}

// loadText loads text as the file g.yaml of dir.
func loadText(dir, text string, environ ...string) (Config, error) {
	return load(newReport("g.yaml"), []byte(text), dir, environ)
}

func TestLoad(t *testing.T) {
	dir := site(t)
	file := write(t, dir, "g.yaml", `
id: site-7
state_dir: state
hub: {url: "wss://hub.example:4001/socket/websocket", heartbeat: 10s, dials_per_second: 0.5}
identity:
  shared_secret: {key: nhp_abc, secret_file: product.secret}
mqtt:
  prefix: site/nh
  embedded: {listen: "0.0.0.0:1884", insecure: true, max_devices: 20}
web: {listen: ""}
classes:
  default: {linger: 5s}
  probe:
    product: soil-probe
    identity: {directory: {path: other-devices}}
devices:
  - {match: "soil-?", class: probe}
  - {match: "soil-*"}
log: {level: debug, format: json}
`, 0o640)
	cfg, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.ID, want.StateDir = "site-7", filepath.Join(dir, "state")
	want.Hub.URL, want.Hub.Heartbeat, want.Hub.DialsPerSecond = "wss://hub.example:4001/socket/websocket", 10*time.Second, 0.5
	want.Identity.SharedSecret = &SharedSecret{Key: "nhp_abc", SecretFile: filepath.Join(dir, "product.secret"), Secret: "s3cret"}
	want.MQTT.Prefix = "site/nh"
	want.MQTT.Embedded.Listen, want.MQTT.Embedded.Insecure, want.MQTT.Embedded.MaxDevices = "0.0.0.0:1884", true, 20
	want.Web.Listen = ""
	probe := want.Classes[defaultClass]
	probe.Product = "soil-probe"
	probe.Identity = &Identity{Directory: &Directory{Path: filepath.Join(dir, "other-devices")}}
	usual := want.Classes[defaultClass]
	usual.Linger = 5 * time.Second
	want.Classes = map[string]Class{defaultClass: usual, "probe": probe}
	want.Devices = []Rule{{"soil-?", "probe"}, {"soil-*", defaultClass}}
	want.Log = Log{"debug", "json"}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got  %+v\nwant %+v", cfg, want)
	}
	for device, want := range map[string]string{"soil-1": "probe", "soil-12": defaultClass, "other": defaultClass, "": defaultClass} {
		if name, class := cfg.Class(device); name != want || !reflect.DeepEqual(class, cfg.Classes[want]) {
			t.Errorf("%q has class %s, want %s", device, name, want)
		}
	}
}

func TestLoadExternal(t *testing.T) {
	dir := site(t)
	cert, key := testPair(t)
	write(t, dir, "c.pem", cert, 0o644)
	write(t, dir, "k.pem", key, 0o600)
	cfg, err := loadText(dir, minimal+`
id: here
mqtt:
  external: {url: "mqtts://broker.local:8883", username: gw, password_file: product.secret, ca_file: c.pem, cert_file: c.pem, key_file: k.pem}
`)
	if err != nil {
		t.Fatal(err)
	}
	if e := cfg.MQTT.External; cfg.MQTT.Embedded != nil || e.Password != "s3cret" || e.ClientID != "ganglion-here" || e.KeyFile != filepath.Join(dir, "k.pem") {
		t.Errorf("got %+v", cfg.MQTT)
	}
}

// An empty file lacks an identity and nothing else.
func TestDefaults(t *testing.T) {
	dir := site(t)
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "{}", "hub:\nclasses:\n  default:\ndevices:\nmqtt:\n  embedded:\n"} {
		_, err := loadText(dir, text)
		ms, ok := errors.AsType[Mistakes](err)
		if !ok || len(ms) != 1 || ms[0].Field != "identity" || !strings.Contains(ms[0].Text, "directory: {path: devices}") {
			t.Errorf("%q: got %v", text, err)
		}
	}
	cfg, err := loadText(dir, minimal)
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.ID, want.Identity.Directory = host, &Directory{Path: filepath.Join(dir, "devices")}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got  %+v\nwant %+v", cfg, want)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	if ms, ok := errors.AsType[Mistakes](Default().Validate()); !ok || len(ms) != 1 || ms[0].Field != "identity" {
		t.Errorf("Default lacks more than an identity: %v", ms)
	}
}

func TestDefaultsAreNotShared(t *testing.T) {
	a := Default()
	a.MQTT.Embedded.Listen = "changed"
	a.Classes[defaultClass].Extensions[0] = "changed"
	if b := Default(); b.MQTT.Embedded.Listen == "changed" || b.Classes[defaultClass].Extensions[0] == "changed" {
		t.Error("one Default changed another")
	}
}

func TestConfigFile(t *testing.T) {
	dir := site(t)
	for _, tt := range []struct{ name, path, want string }{
		{"missing", filepath.Join(dir, "none.yaml"), "no such file"},
		{"a directory", filepath.Join(dir, "devices"), "not a regular file"},
		{"no file", "/dev/null", "not a regular file"},
		{"for all to write", write(t, dir, "w.yaml", minimal, 0o646), "chmod o-w"},
		{"huge", write(t, dir, "h.yaml", minimal+strings.Repeat("#", maxConfig), 0o600), "more than the 1048576"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(tt.path)
			ms, ok := errors.AsType[Mistakes](err)
			if !ok || len(ms) != 1 || ms[0].Where != tt.path || !strings.Contains(ms[0].Text, tt.want) || !strings.Contains(ms[0].Text, "; ") && tt.name == "missing" {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestSecretsArePrintedNowhere(t *testing.T) {
	s := Secret("planted")
	cfg := Default()
	cfg.Identity.SharedSecret = &SharedSecret{Key: "nhp_a", Secret: s}
	var log strings.Builder
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("start", "secret", s, "identity", *cfg.Identity.SharedSecret, "cfg", cfg)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&log, verb, s)
		fmt.Fprintf(&log, verb, *cfg.Identity.SharedSecret)
	}
	if got := log.String(); strings.Contains(got, "planted") || strings.Contains(got, fmt.Sprintf("%x", "planted")) {
		t.Errorf("a secret was printed: %s", got)
	}
}

func TestSecretFilesAreNotQuoted(t *testing.T) {
	dir := site(t)
	write(t, dir, "two.secret", "planted one\nplanted two\n", 0o600)
	_, err := loadText(dir, "identity: {shared_secret: {key: nhp_a, secret_file: two.secret}}")
	if err == nil || strings.Contains(err.Error(), "planted") || !strings.Contains(err.Error(), "on one line") {
		t.Errorf("got %v", err)
	}
}
