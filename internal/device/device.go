// Package device is a simulated microcontroller: firmware as an engineer would
// write it against the MQTT contract, with an MQTT 3.1.1 codec of its own, a
// slow flash, reboots and faults to order. It knows the contract's topics and
// payloads and nothing of the gateway's code, nor of NervesHub's protocol.
package device

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"slices"
	"sync"
	"time"
)

// Config describes a device. Broker and ID are required.
type Config struct {
	Broker   string // HOST:PORT
	ID       string // NervesHub identifier, also the MQTT client id
	Prefix   string // of all topics; default nh
	Username string // empty: none is sent
	Password string

	Firmware Firmware // runs at first; default version 1.0.0 of a soil-probe

	// Dial reaches the broker; and the download server, unless HTTP is set.
	// Default: net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	HTTP *http.Client // fetches images; default: one without idle connections

	Packet    int           // bytes of the largest MQTT packet either way, at least 128; default 2048
	Keepalive time.Duration // of MQTT, at most 18 h; default 30 s
	Boot      time.Duration // from reset to the first dial; default 1 s
	Flash     int           // bytes/s from HTTP into flash, at least 128; default 256 KiB/s
	Retry     time.Duration // before the first reconnect; doubles up to 30 s; default 1 s

	ShortHello bool   // the short forms for all payloads that have one
	Online     bool   // retained up/online with a will, as foreign brokers need it
	Interface  string // wifi, ethernet, cellular or any text; empty: not said

	Faults  []Fault
	Trouble time.Duration // mean time between random faults; default 5 s
	Seed    uint64        // of all chance, together with ID

	// Log hears of every event, in order and after it is counted, from Run's
	// goroutine. It must not block. Default: nobody.
	Log func(Event)
}

// A Device is one microcontroller. What it has in flash outlives Run.
type Device struct {
	cfg    Config
	topics topics
	rand   *rand.Rand // owned by Run
	flash  memory     // owned by Run

	mu     sync.Mutex // guards counts
	counts Counts
}

// Counts is what a device did since New.
type Counts struct {
	Connects, Subscribes, Hellos, Reboots, Identifies int

	Updates      int            // images installed
	Refused      int            // down/error messages
	Commands     map[uint64]int // executions by ref; the newest 1024 refs
	Repeated     int            // commands received again and not executed
	Lost         int            // QoS 1 publishes dropped: the outbox was full, or the packet too small
	Online, Link bool           // now: connected and said hello; joined at NervesHub
	Running      Firmware
}

// memory is what survives a reset.
type memory struct {
	firmware  Firmware
	validated bool
	reverted  bool
	refs      []uint64 // commands seen, the newest last, at most refsKept
	partial   *image   // nil: none
	next      *Firmware
	cut       string // key of the image whose transfer the fault reboot cut
}

const (
	refsKept    = 64
	countedRefs = 1024
)

type topics struct{ up, down, gateway string }

// New makes a device that is switched off. Run reports what is wrong with the
// Config.
func New(c Config) *Device {
	c.Prefix = cmp.Or(c.Prefix, "nh")
	c.Packet = cmp.Or(c.Packet, 2048)
	c.Keepalive = cmp.Or(c.Keepalive, 30*time.Second)
	c.Boot = cmp.Or(c.Boot, time.Second)
	c.Flash = cmp.Or(c.Flash, 256<<10)
	c.Retry = cmp.Or(c.Retry, time.Second)
	c.Trouble = cmp.Or(c.Trouble, 5*time.Second)
	if c.Firmware == (Firmware{}) {
		c.Firmware = DefaultFirmware
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if c.HTTP == nil {
		c.HTTP = &http.Client{Transport: &http.Transport{DialContext: c.Dial, DisableKeepAlives: true}}
	}
	if c.Log == nil {
		c.Log = func(Event) {}
	}
	h := fnv.New64a()
	h.Write([]byte(c.ID))
	base := c.Prefix + "/" + c.ID
	return &Device{
		cfg:    c,
		topics: topics{up: base + "/up/", down: base + "/down/", gateway: c.Prefix + "/gateway"},
		rand:   rand.New(rand.NewPCG(c.Seed, h.Sum64())),
		flash:  memory{firmware: c.Firmware, validated: true},
		counts: Counts{Running: c.Firmware},
	}
}

// DefaultFirmware runs on a device whose Config says nothing else.
var DefaultFirmware = Firmware{
	Version: "1.0.0", UUID: "8b0f9d54-52c9-5a0e-9c3a-5f1c8f7a1000",
	Product: "soil-probe", Platform: "stm32l4", Architecture: "arm",
}

var identifier = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Check reports what is wrong with c, by field. A zero value of an optional
// field is its default and fine.
func (c Config) Check() error {
	made := New(c)
	d := made.cfg
	_, _, err := net.SplitHostPort(d.Broker)
	switch {
	case err != nil:
		return fmt.Errorf("device: broker: %q is not HOST:PORT", d.Broker)
	case !identifier.MatchString(d.ID) || d.ID == "gateway":
		return fmt.Errorf("device: id: %q is not 1 to 64 of A-Z a-z 0-9 . _ - beginning with a letter or digit, and not gateway", d.ID)
	case len(d.Prefix) > 256 || !validPrefix.MatchString(d.Prefix):
		return fmt.Errorf("device: prefix: %q is not one or more topic levels", d.Prefix)
	case d.Packet < 128 || d.Packet > 1<<20:
		return fmt.Errorf("device: packet: %d is not 128 to 1048576 bytes", d.Packet)
	case d.Keepalive < time.Second || d.Keepalive > 18*time.Hour:
		return fmt.Errorf("device: keepalive: %v is not 1s to 18h", d.Keepalive)
	case d.Boot < 0 || d.Retry < 0 || d.Trouble < 0:
		return errors.New("device: boot, retry and trouble must not be negative")
	case d.Flash < 128:
		return fmt.Errorf("device: flash: %d is less than 128 bytes/s", d.Flash)
	case len(d.Username) > 256 || len(d.Password) > 256:
		return errors.New("device: username and password: at most 256 bytes each")
	}
	// The longest topics are those of the garbage: some 24 bytes below the id.
	if n := max(len(connectPacket(made.login())), len(made.subscription(1)), len(made.topics.up)+32); n > d.Packet {
		return fmt.Errorf("device: packet: %d bytes are too few for this prefix, id and login; they need %d", d.Packet, n)
	}
	for _, f := range d.Faults {
		if !slices.Contains(Faults, f) {
			return fmt.Errorf("device: fault: no %q; there are %v", f, Faults)
		}
	}
	return nil
}

var validPrefix = regexp.MustCompile(`^[^/+#\x00]+(/[^/+#\x00]+)*$`)

// Run switches the device on, and off again when ctx ends, which is no error.
// It returns at once if the Config is wrong. At rest it costs two goroutines;
// a download needs one more, and those of net/http.
func (d *Device) Run(ctx context.Context) error {
	if err := d.cfg.Check(); err != nil {
		return err
	}
	defer d.count(func(c *Counts) { c.Online, c.Link = false, false })
	for {
		d.swap()
		d.emit(Running{d.flash.firmware, d.flash.reverted})
		if !newBoot(ctx, d).run() {
			return nil
		}
		d.count(func(c *Counts) { c.Reboots++; c.Online, c.Link = false, false })
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(d.cfg.Boot):
		}
	}
}

// swap is the bootloader: it starts what was installed, if anything.
func (d *Device) swap() {
	next := d.flash.next
	if next == nil {
		return
	}
	d.flash.next = nil
	if d.has(FaultRevert) {
		d.flash.reverted = true
		d.emit(Misbehaved{FaultRevert, "back to " + d.flash.firmware.String() + " instead of " + next.String()})
		return
	}
	d.flash.firmware, d.flash.validated, d.flash.reverted = *next, false, false
	d.count(func(c *Counts) { c.Updates++; c.Running = *next })
}

// Counts is what the device did so far. It may be called at any time.
func (d *Device) Counts() Counts {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.counts
	c.Commands = make(map[uint64]int, len(d.counts.Commands))
	for ref, n := range d.counts.Commands {
		c.Commands[ref] = n
	}
	return c
}

// ID is the device's identifier.
func (d *Device) ID() string { return d.cfg.ID }

func (d *Device) count(f func(*Counts)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(&d.counts)
}

func (d *Device) emit(w What) { d.cfg.Log(Event{Device: d.cfg.ID, At: time.Now(), What: w}) }

func (d *Device) has(f Fault) bool { return slices.Contains(d.cfg.Faults, f) }

// between is a random duration from lo up to hi.
func (d *Device) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(d.rand.Int64N(int64(hi-lo)+1))
}
