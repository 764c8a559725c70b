package gateway

import (
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEnvironment(t *testing.T) {
	dir := site(t)
	for _, tt := range []struct {
		variable, text string
		got            func(Config) any
		want           any
	}{
		{"GANGLION_ID", "site 7", func(c Config) any { return c.ID }, "site 7"},
		{"GANGLION_ID", "7", func(c Config) any { return c.ID }, "7"},
		{"GANGLION_STATE_DIR", "state", func(c Config) any { return c.StateDir }, filepath.Join(dir, "state")},
		{"GANGLION_HUB_URL", "wss://h/socket/websocket", func(c Config) any { return c.Hub.URL }, "wss://h/socket/websocket"},
		{"GANGLION_HUB_HEARTBEAT", "45s", func(c Config) any { return c.Hub.Heartbeat }, 45 * time.Second},
		{"GANGLION_HUB_DIALS_PER_SECOND", "50", func(c Config) any { return c.Hub.DialsPerSecond }, 50.0},
		{"GANGLION_IDENTITY_DIRECTORY_PATH", "other-devices", func(c Config) any { return c.Identity.Directory.Path }, filepath.Join(dir, "other-devices")},
		{"GANGLION_MQTT_PREFIX", "lab", func(c Config) any { return c.MQTT.Prefix }, "lab"},
		{"GANGLION_MQTT_EMBEDDED_LISTEN", "[::1]:0", func(c Config) any { return *c.MQTT.Embedded }, Embedded{Listen: "[::1]:0", Anonymous: true, MaxDevices: 10000}},
		{"GANGLION_MQTT_EMBEDDED_INSECURE", "true", func(c Config) any { return c.MQTT.Embedded.Insecure }, true},
		{"GANGLION_MQTT_EMBEDDED_MAX_DEVICES", "500", func(c Config) any { return c.MQTT.Embedded.MaxDevices }, 500},
		{"GANGLION_MQTT_EXTERNAL_URL", "mqtt://127.0.0.1:1883", func(c Config) any { return c.MQTT.Embedded == nil && c.MQTT.External.URL != "" }, true},
		{"GANGLION_FIRMWARE_TRUST_HUB_KEYS", "true", func(c Config) any { return *c.Firmware.TrustHubKeys }, true},
		{"GANGLION_JOURNAL_MAX_BYTES", "256MiB", func(c Config) any { return c.Journal.MaxBytes }, 256 * mib},
		{"GANGLION_WEB_LISTEN", "", func(c Config) any { return c.Web.Listen }, ""},
		{"GANGLION_LOG_LEVEL", "debug", func(c Config) any { return c.Log.Level }, "debug"},
	} {
		t.Run(tt.variable, func(t *testing.T) {
			cfg, err := loadText(dir, minimal+"log: {level: warn}\n", tt.variable+"="+tt.text, "GANGLIONS=7", "HOME=/")
			if err != nil {
				t.Fatal(err)
			}
			if got := tt.got(cfg); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestEnvironmentMistakes(t *testing.T) {
	for _, tt := range []struct{ variable, text, want string }{
		{"GANGLION_HUB_HEARTBEAT", "30", "GANGLION_HUB_HEARTBEAT: hub.heartbeat: found 30 without a unit; write 30s"},
		{"GANGLION_HUB_HEARTBEAT", "10m", "GANGLION_HUB_HEARTBEAT: hub.heartbeat: found 10m, want 1s to 2m"},
		{"GANGLION_HUB_DIALS_PER_SECOND", "NaN", `GANGLION_HUB_DIALS_PER_SECOND: hub.dials_per_second: found "NaN", want a number`},
		{"GANGLION_MQTT_EMBEDDED_ANONYMOUS", "1", `GANGLION_MQTT_EMBEDDED_ANONYMOUS: mqtt.embedded.anonymous: found "1", want true or false`},
		{"GANGLION_MQTT_EMBEDDED_MAX_DEVICES", "", `GANGLION_MQTT_EMBEDDED_MAX_DEVICES: mqtt.embedded.max_devices: found ""`},
		{"GANGLION_SITE_TRANSFERS", "9", "GANGLION_SITE_TRANSFERS: site.transfers: found 9, but this version has no limit"},
		{"GANGLION_ID", "a\nb", `GANGLION_ID: id: found "a\nb"`},
		{"GANGLION_LOGLEVEL", "info", "GANGLION_LOGLEVEL: unknown variable; did you mean GANGLION_LOG_LEVEL?"},
		{"GANGLION_CONFIG", "f", "GANGLION_CONFIG: unknown variable; unset it, or name a key of the file in capitals"},
		{"GANGLION_CLASSES_DEFAULT_LINGER", "5s", "GANGLION_CLASSES_DEFAULT_LINGER: unknown variable; devices and classes can be set only in the file"},
		{"GANGLION_MQTT_EXTERNAL_PASSWORD", "planted", "GANGLION_MQTT_EXTERNAL_PASSWORD: unknown variable; did you mean GANGLION_MQTT_EXTERNAL_PASSWORD_FILE?"},
		{"GANGLION_IDENTITY_SHARED_SECRET_SECRET_FILE", "open.secret", "GANGLION_IDENTITY_SHARED_SECRET_SECRET_FILE: identity.shared_secret.secret_file: "},
		{"GANGLION_", "", "GANGLION_: unknown variable; unset it"},
		{"GANGLION_IDENTITY_CA_VALIDITY", "720h", "GANGLION_IDENTITY_CA_VALIDITY: identity.ca: this version mints no certificates"},
		{"GANGLION_IDENTITY_SHARED_SECRET_KEY", "nhp_a", "GANGLION_IDENTITY_SHARED_SECRET_KEY: identity.shared_secret.secret_file: found nothing"},
		{"GANGLION_MQTT_EXTERNAL_USERNAME", "gateway", "GANGLION_MQTT_EXTERNAL_USERNAME: mqtt.external.url: found nothing"},
	} {
		t.Run(tt.variable, func(t *testing.T) {
			_, err := loadText(site(t), minimal, tt.variable+"="+tt.text)
			lines := strings.Split(errors.Join(err).Error(), "\n")
			if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, tt.want) }) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
			if strings.Contains(err.Error(), "planted") {
				t.Errorf("a secret was printed: %v", err)
			}
		})
	}
}

// Two alternatives are told of also when one of them is in the environment, and
// by the name of the variable that made them two.
func TestEnvironmentAlternative(t *testing.T) {
	for _, tt := range []struct {
		file    string
		environ []string
		want    string
	}{
		{minimal, []string{"GANGLION_IDENTITY_SHARED_SECRET_KEY=nhp_a", "GANGLION_IDENTITY_SHARED_SECRET_SECRET_FILE=product.secret"},
			"GANGLION_IDENTITY_SHARED_SECRET_KEY: identity: found directory and shared_secret; "},
		{minimal + "mqtt:\n  embedded: {max_devices: 5}\n", []string{"GANGLION_MQTT_PREFIX=lab", "GANGLION_MQTT_EXTERNAL_URL=mqtt://127.0.0.1:1883"},
			"GANGLION_MQTT_EXTERNAL_URL: mqtt: found embedded and external; "},
		{minimal + "mqtt:\n  external: {url: 'mqtt://127.0.0.1:1883'}\n", []string{"GANGLION_MQTT_EMBEDDED_MAX_DEVICES=5"},
			"GANGLION_MQTT_EMBEDDED_MAX_DEVICES: mqtt: found embedded and external; "},
		{minimal + "mqtt:\n  external: {url: 'mqtt://127.0.0.1:1883'}\n  embedded: {max_devices: 5}\n", []string{"GANGLION_MQTT_EXTERNAL_USERNAME=a"},
			"g.yaml:2:1: mqtt: found embedded and external; "},
	} {
		_, err := loadText(site(t), tt.file, tt.environ...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
}

func TestLoadReadsTheEnvironment(t *testing.T) {
	file := write(t, site(t), "g.yaml", minimal, 0o600)
	t.Setenv("GANGLION_MQTT_PREFIX", "from-outside")
	cfg, err := Load(file)
	if err != nil || cfg.MQTT.Prefix != "from-outside" {
		t.Errorf("prefix %q, %v", cfg.MQTT.Prefix, err)
	}
}

// No two fields share a variable, and each variable reaches its field.
func TestEnvironmentNames(t *testing.T) {
	seen := 0
	cfg := everything()
	leaves(reflect.ValueOf(&cfg).Elem(), "", func(l leaf) {
		if l.value.Kind() != reflect.Slice && !strings.HasPrefix(l.field, "classes.") {
			seen++
		}
	})
	names := envFields()
	if len(names) != seen || seen < 40 {
		t.Errorf("%d variables for %d fields", len(names), seen)
	}
	for name, field := range names {
		var cfg Config
		v := settable(reflect.ValueOf(&cfg).Elem(), field)
		if !v.CanSet() || v.Kind() == reflect.Struct || v.Kind() == reflect.Map {
			t.Errorf("%s leads to no scalar", name)
		}
	}
}

// everything is a Config with every section there.
func everything() Config {
	cfg := Default()
	cfg.Identity = Identity{Directory: &Directory{}, SharedSecret: &SharedSecret{}, CA: &CA{}}
	cfg.Identity.CA.setDefaults()
	cfg.MQTT.External = &External{}
	return cfg
}
