package gateway

import (
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"time"
)

// Config is everything an operator decides. The zero value is not usable:
// begin with [Default] or [Load]. config.example.yaml explains every key; the
// yaml tags here are those keys.
type Config struct {
	ID         string           `yaml:"id"`                    // name on <prefix>/gateway; Load fills in the host name
	StateDir   string           `yaml:"state_dir" path:"made"` // created when needed
	Hub        Hub              `yaml:"hub"`
	Identity   Identity         `yaml:"identity"`
	MQTT       MQTT             `yaml:"mqtt"`
	Onboarding Onboarding       `yaml:"onboarding"`
	Firmware   Firmware         `yaml:"firmware"`
	Site       Site             `yaml:"site"`
	Journal    Journal          `yaml:"journal"`
	Web        Web              `yaml:"web"`
	Classes    map[string]Class `yaml:"classes"` // always has "default"
	Devices    []Rule           `yaml:"devices"` // first match wins; see [Config.Class]
	Log        Log              `yaml:"log"`
}

// Hub is the NervesHub to connect to.
type Hub struct {
	URL            string        `yaml:"url" want:"wss://HOST/device-socket/websocket"`
	CAFile         string        `yaml:"ca_file" path:"ca"`
	Dialect        string        `yaml:"dialect"`
	Heartbeat      time.Duration `yaml:"heartbeat"`
	DialsPerSecond float64       `yaml:"dials_per_second"` // the whole gateway
}

// Identity is how devices prove themselves to NervesHub: exactly one is set.
type Identity struct {
	Directory    *Directory    `yaml:"directory"`
	SharedSecret *SharedSecret `yaml:"shared_secret"`
	CA           *CA           `yaml:"ca"`
}

// Directory holds <device>.pem and <device>-key.pem.
type Directory struct {
	Path string `yaml:"path" path:"dir"`
}

// SharedSecret is a NervesHub product's or device's key and secret.
type SharedSecret struct {
	Key        string `yaml:"key" want:"nhp_…"`
	SecretFile string `yaml:"secret_file" path:"secret"`
	Secret     Secret `yaml:"-"` // what SecretFile holds; read by Load
}

// CA mints a certificate for each device.
type CA struct {
	CertFile string        `yaml:"cert_file" path:"pem"`
	KeyFile  string        `yaml:"key_file" path:"key"`
	Validity time.Duration `yaml:"validity"`
}

// MQTT is where devices are met: exactly one of Embedded and External is set.
type MQTT struct {
	Prefix   string    `yaml:"prefix"`
	Embedded *Embedded `yaml:"embedded"`
	External *External `yaml:"external"`
}

// Embedded is the gateway's own broker.
type Embedded struct {
	Listen     string    `yaml:"listen" want:"HOST:PORT"` // plain TCP; "" is off
	TLS        BrokerTLS `yaml:"tls"`
	Websocket  Websocket `yaml:"websocket"`
	Anonymous  bool      `yaml:"anonymous"`
	Insecure   bool      `yaml:"insecure"`
	UsersFile  string    `yaml:"users_file" path:"secret"`
	MaxDevices int       `yaml:"max_devices"`
}

// BrokerTLS is the embedded broker's listener for MQTT over TLS.
type BrokerTLS struct {
	Listen       string `yaml:"listen" want:"HOST:PORT"`
	CertFile     string `yaml:"cert_file" path:"pem"`
	KeyFile      string `yaml:"key_file" path:"key"`
	ClientCAFile string `yaml:"client_ca_file" path:"ca"`
}

// Websocket is the embedded broker's listener for MQTT over websockets.
type Websocket struct {
	Listen string `yaml:"listen" want:"HOST:PORT"`
}

// External is somebody else's broker.
type External struct {
	URL          string `yaml:"url" want:"mqtts://HOST:8883"`
	ClientID     string `yaml:"client_id"` // Load fills in "ganglion-" and the ID
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file" path:"secret"`
	CAFile       string `yaml:"ca_file" path:"ca"`
	CertFile     string `yaml:"cert_file" path:"pem"`
	KeyFile      string `yaml:"key_file" path:"key"`
	Password     Secret `yaml:"-"` // what PasswordFile holds; read by Load
}

// Onboarding is how unknown devices are taken in.
type Onboarding struct {
	Mode      string   `yaml:"mode"`
	Allow     []string `yaml:"allow"`
	ClaimFile string   `yaml:"claim_file" path:"secret"`
}

// Firmware is the server that hands images to devices.
type Firmware struct {
	Listen       string      `yaml:"listen" want:"HOST:PORT"`
	TLS          FirmwareTLS `yaml:"tls"`
	URL          string      `yaml:"url"`
	CacheBytes   Size        `yaml:"cache_bytes"`
	Keys         []string    `yaml:"keys"`
	TrustHubKeys *bool       `yaml:"trust_hub_keys"` // nil: while Keys is empty
	AllowHosts   []string    `yaml:"allow_hosts"`
	AllowPrivate bool        `yaml:"allow_private"`
}

// FirmwareTLS is the certificate of the firmware server.
type FirmwareTLS struct {
	CertFile string `yaml:"cert_file" path:"pem"`
	KeyFile  string `yaml:"key_file" path:"key"`
}

// Site spreads the load of a place with many devices.
type Site struct {
	Transfers int    `yaml:"transfers"`
	Window    string `yaml:"window"`
}

// Journal is what survives a power cut.
type Journal struct {
	MaxBytes Size `yaml:"max_bytes"`
}

// Web serves /healthz, /readyz and /metrics.
type Web struct {
	Listen    string `yaml:"listen" want:"HOST:PORT"` // "" is off
	TokenFile string `yaml:"token_file" path:"secret"`
}

// Class is what a kind of device is allowed and expected to do.
type Class struct {
	Delivery       string        `yaml:"delivery"` // passthrough
	Resource       string        `yaml:"resource"`
	Signature      string        `yaml:"signature"`
	AllowUnsigned  bool          `yaml:"allow_unsigned"`
	AllowDowngrade bool          `yaml:"allow_downgrade"`
	Patches        bool          `yaml:"patches"`
	Deltas         bool          `yaml:"deltas"`
	Online         string        `yaml:"online"`  // mqtt
	Linger         time.Duration `yaml:"linger"`  // grace before a lost device goes offline upstream
	Overdue        time.Duration `yaml:"overdue"` // 0: twice the device's own sleep
	CommandTTL     time.Duration `yaml:"command_ttl"`
	Reschedule     time.Duration `yaml:"reschedule"` // for a rescheduled status without a delay
	Deadline       Deadline      `yaml:"deadline"`
	Console        bool          `yaml:"console"`
	Scripts        bool          `yaml:"scripts"`
	Extensions     []string      `yaml:"extensions"`
	Place          string        `yaml:"place"`
	Product        string        `yaml:"product"` // these three fill what a short hello leaves out
	Platform       string        `yaml:"platform"`
	Architecture   string        `yaml:"architecture"`
	Identity       *Identity     `yaml:"identity"` // nil: as the gateway
}

// Deadline is how long each step of an update may take.
type Deadline struct {
	Offer    time.Duration `yaml:"offer"`
	Fetch    time.Duration `yaml:"fetch"`
	Transfer time.Duration `yaml:"transfer"`
	Reboot   time.Duration `yaml:"reboot"`
	Validate time.Duration `yaml:"validate"`
}

// Rule gives the devices whose identifier matches a glob ([path.Match]) a class.
type Rule struct {
	Match string `yaml:"match" want:"a pattern such as soil-*"`
	Class string `yaml:"class"`
}

// Log is how the gateway logs, to standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // text, json
}

// Size is a number of bytes.
type Size int64

const (
	kib Size = 1 << 10
	mib Size = 1 << 20
	gib Size = 1 << 30
)

// Secret is text that no log, error or dump shows. string(s) reveals it.
type Secret string

// Format prints a placeholder, whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, "<secret>") }

// MarshalText is for encoders that do not ask Format.
func (Secret) MarshalText() ([]byte, error) { return []byte("<secret>"), nil }

// defaultClass is the class of devices no rule names.
const defaultClass = "default"

// Default is the configuration of an empty file. It lacks what nobody can
// guess: an Identity.
func Default() Config {
	embedded := &Embedded{}
	embedded.setDefaults()
	class := Class{}
	class.setDefaults()
	return Config{
		StateDir: "/var/lib/ganglion",
		Hub: Hub{
			URL:            "wss://devices.nervescloud.com/device-socket/websocket",
			Dialect:        "current",
			Heartbeat:      30 * time.Second,
			DialsPerSecond: 5,
		},
		MQTT:       MQTT{Prefix: "nh", Embedded: embedded},
		Onboarding: Onboarding{Mode: "closed"},
		Firmware:   Firmware{Listen: "127.0.0.1:8080", CacheBytes: 2 * gib},
		Site:       Site{Transfers: 8},
		Journal:    Journal{MaxBytes: 256 * mib},
		Web:        Web{Listen: "127.0.0.1:8081"},
		Classes:    map[string]Class{defaultClass: class},
		Log:        Log{Level: "info", Format: "text"},
	}
}

// A section that a file may or may not hold starts from its own defaults.
type section interface{ setDefaults() }

var (
	_ section = (*Embedded)(nil)
	_ section = (*CA)(nil)
	_ section = (*Class)(nil)
	_ section = (*Rule)(nil)
)

func (e *Embedded) setDefaults() {
	*e = Embedded{Listen: "127.0.0.1:1883", Anonymous: true, MaxDevices: 10000}
}

func (c *CA) setDefaults() { *c = CA{Validity: 87600 * time.Hour} }

func (r *Rule) setDefaults() { *r = Rule{Class: defaultClass} }

func (c *Class) setDefaults() {
	*c = Class{
		Delivery:   "passthrough",
		Online:     "mqtt",
		Linger:     30 * time.Second,
		CommandTTL: time.Minute,
		Reschedule: time.Hour,
		Deadline: Deadline{
			Offer: 24 * time.Hour, Fetch: 24 * time.Hour, Transfer: time.Hour,
			Reboot: 10 * time.Minute, Validate: 30 * time.Minute,
		},
		Extensions: []string{"health", "geo", "logging"},
	}
}

// Class is the class of a device and its name: that of the first rule whose
// pattern matches, else "default".
func (c Config) Class(device string) (name string, class Class) {
	for _, r := range c.Devices {
		if ok, err := path.Match(r.Match, device); ok && err == nil {
			return r.Class, c.Classes[r.Class]
		}
	}
	return defaultClass, c.Classes[defaultClass]
}

// classNames are the names of the classes in order.
func (c Config) classNames() []string { return slices.Sorted(maps.Keys(c.Classes)) }
