package gateway_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/internal/device"
	"ganglion/internal/gateway"
	"ganglion/internal/hubtest"
	"ganglion/internal/hubtest/auth"
	"ganglion/internal/memnet"
)

// A world is the whole story in one bubble: a NervesHub stand-in with mutual
// TLS, the gateway with its embedded broker, and simulated microcontrollers, on
// networks of memory and in time that costs nothing.
type world struct {
	t        *testing.T
	hub      *hubtest.Hub
	hubNet   *memnet.Listener // NervesHub's device endpoint
	filesNet *memnet.Listener // its downloads
	mqttNet  *memnet.Listener // the embedded broker
	webNet   *memnet.Listener
	gateway  *gateway.Gateway
	ca       *auth.CA
	registry *auth.Registry
	dir      string
	log      *logged

	stop    context.CancelFunc
	stopped sync.WaitGroup
	devices map[string]*device.Device
}

// logged collects the gateway's log, to show it when a test fails.
type logged struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// firmware returns what simulated devices run, in a version.
func firmware(version, uuid string) hubtest.Firmware {
	fw := device.DefaultFirmware
	return hubtest.Firmware{UUID: uuid, Version: version, Product: fw.Product, Platform: fw.Platform,
		Architecture: fw.Architecture, Image: bytes.Repeat([]byte(version), 4096)}
}

const (
	uuid11 = "3c55399b-96d9-5a6a-2a3c-4dc82b781299"
	uuid12 = "0b9f6a34-7f43-5a1e-9d0b-6a1f2f0e8a77"
)

// newWorld starts a hub and a gateway for the named devices. Everything has
// ended when the test has.
func newWorld(t *testing.T, ids []string, change func(*gateway.Config, *hubtest.Config)) *world {
	t.Helper()
	w := &world{t: t, hubNet: memnet.Listen(), filesNet: memnet.Listen(), mqttNet: memnet.Listen(), webNet: memnet.Listen(),
		registry: auth.New(), dir: t.TempDir(), log: &logged{}, devices: map[string]*device.Device{}}
	server, root, err := auth.NewServerCertificate("hub.test")
	w.must(err)
	w.ca, err = auth.NewCA("Test Device CA")
	w.must(err)
	w.must(w.registry.AddCA(w.ca.Certificate, false))
	w.must(os.Mkdir(filepath.Join(w.dir, "devices"), 0o700))
	w.must(os.WriteFile(filepath.Join(w.dir, "root.pem"), root, 0o600))
	for _, id := range ids {
		w.issue(id)
	}
	hubConfig := hubtest.Config{Auth: w.registry, Certificate: server, WebURL: "http://files.test"}
	config := gateway.Default()
	config.ID, config.StateDir = "site-7", filepath.Join(w.dir, "state")
	config.Hub.URL, config.Hub.CAFile = "wss://hub.test/device-socket/websocket", filepath.Join(w.dir, "root.pem")
	config.Identity.Directory = &gateway.Directory{Path: filepath.Join(w.dir, "devices")}
	config.MQTT.Embedded.Listen, config.Web.Listen = "mqtt", "web"
	if change != nil {
		change(&config, &hubConfig)
	}
	w.hub = hubtest.New(hubConfig)
	for _, id := range ids {
		w.hub.AddDevice(id)
	}
	w.hub.AddFirmware(firmware("1.1.0", uuid11))
	w.hub.AddFirmware(firmware("1.2.0", uuid12))
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	w.goRun("hub", func() error { return w.hub.Serve(w.hubNet) })
	w.goRun("downloads", func() error { return w.hub.ServeWeb(w.filesNet) })
	w.startGateway(ctx, config)
	t.Cleanup(w.end)
	return w
}

func (w *world) startGateway(ctx context.Context, config gateway.Config) {
	w.t.Helper()
	var err error
	w.gateway, err = gateway.New(config, gateway.Options{
		Version: "0.0.0", Log: slog.New(slog.NewTextHandler(w.log, nil)), NetDial: w.hubNet.Dial,
		Listen: func(_, addr string) (net.Listener, error) {
			if addr == "web" {
				return w.webNet, nil
			}
			return w.mqttNet, nil
		},
	})
	w.must(err)
	w.goRun("gateway", func() error { return w.gateway.Run(ctx) })
}

// issue gives a device its certificate.
func (w *world) issue(id string) {
	w.t.Helper()
	leaf, err := w.ca.Issue(id)
	w.must(err)
	w.registry.AddDevice(id)
	base := filepath.Join(w.dir, "devices", id)
	w.must(os.WriteFile(base+".pem", leaf.CertPEM, 0o600))
	w.must(os.WriteFile(base+"-key.pem", leaf.KeyPEM, 0o600))
}

func (w *world) goRun(name string, run func() error) {
	w.stopped.Go(func() {
		if err := run(); err != nil {
			w.t.Errorf("%s: %v", name, err)
		}
	})
}

// switchOn starts a device and returns how to switch it off.
func (w *world) switchOn(id string, change func(*device.Config)) (off func()) {
	w.t.Helper()
	c := device.Config{Broker: "broker:1883", ID: id, Dial: w.mqttNet.Dial, HTTP: w.download(), Boot: time.Second}
	if change != nil {
		change(&c)
	}
	d := device.New(c)
	w.devices[id] = d
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	w.stopped.Go(func() {
		defer close(done)
		if err := d.Run(ctx); err != nil {
			w.t.Errorf("device %s: %v", id, err)
		}
	})
	w.t.Cleanup(cancel)
	return func() { cancel(); <-done }
}

func (w *world) download() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: w.filesNet.Dial, DisableKeepAlives: true}}
}

// until waits until the hub has seen cond of a device, at most limit of fake
// time.
func (w *world) until(id, what string, limit time.Duration, cond func(hubtest.DeviceState) bool) hubtest.DeviceState {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := w.hub.Wait(ctx, id, cond); err != nil {
		w.t.Fatalf("%s: the hub did not see %s within %s; it has %s\nlog:\n%s", id, what, limit, w.state(id), w.log)
	}
	d, _ := w.hub.Device(id)
	return d
}

func (w *world) state(id string) string {
	d, _ := w.hub.Device(id)
	frames := ""
	for _, f := range d.Frames {
		if f.Event != "heartbeat" && f.Topic != "phoenix" {
			frames += fmt.Sprintf("\n  %s %s %s %.200s", f.Time.Format("15:04:05.000"), f.Dir, f.Event, f.Payload)
		}
	}
	return fmt.Sprintf("joined=%t joins=%d connections=%d metadata=%+v inflight=%+v attempts=%d crashes=%+v%s",
		d.Joined, d.Joins, d.Connections, d.Metadata, d.Inflight, len(d.Attempts), d.Crashes, frames)
}

// clean fails the test if NervesHub ever had reason to complain of a device.
func (w *world) clean(id string) {
	w.t.Helper()
	d, _ := w.hub.Device(id)
	if len(d.Crashes) > 0 || d.FalseSuccesses > 0 || d.PhantomRows > 0 {
		w.t.Errorf("%s: %d crashes, %d false successes, %d phantom rows: %s", id, len(d.Crashes), d.FalseSuccesses, d.PhantomRows, w.state(id))
	}
}

func (w *world) end() {
	w.stop()
	w.hub.Close()
	w.stopped.Wait()
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func joined(d hubtest.DeviceState) bool { return d.Joined }

// said counts the frames of an event that hold text.
func said(d hubtest.DeviceState, event, text string) int {
	n := 0
	for _, f := range d.Frames {
		if f.Dir == "up" && f.Event == event && strings.Contains(string(f.Payload), text) {
			n++
		}
	}
	return n
}

// TestUpdate is the outcome of it all: offered, taken, reported, rebooted,
// running, validated.
func TestUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"probe-1"}, nil)
		w.switchOn("probe-1", nil)
		w.until("probe-1", "a join", time.Minute, joined)
		w.must(w.hub.SetRelease(uuid11))
		d := w.until("probe-1", "1.1.0 validated", 5*time.Minute, func(d hubtest.DeviceState) bool {
			return d.Metadata.Version == "1.1.0" && d.Validation == "validated"
		})
		w.clean("probe-1")
		for _, word := range []string{"received", "started", "completed"} {
			if n := said(d, "status_update", `"`+word+`"`); n != 1 {
				t.Errorf("%s was said %d times", word, n)
			}
		}
		if said(d, "fwup_progress", `"value"`) == 0 || d.Successes != 1 || d.GroupUpdates != 1 {
			t.Errorf("progress, successes or the group's count is wrong: %s", w.state("probe-1"))
		}
		for _, f := range d.Frames {
			if f.Dir == "up" && strings.Contains(string(f.Payload), "fwup_version") {
				t.Errorf("fwup_version went up: %s", f.Payload)
			}
		}
	})
}

// TestDays runs three days with everything a server does to its connections:
// drops, reconnects by an operator, drains, and silence.
func TestDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ids := []string{"a", "b", "c", "d"}
		w := newWorld(t, ids, nil)
		for _, id := range ids {
			w.switchOn(id, nil)
			w.until(id, "a join", time.Minute, joined)
		}
		heartbeats := func() (n int) {
			for _, id := range ids {
				d, _ := w.hub.Device(id)
				n += d.HeartbeatsSeen
			}
			return n
		}
		time.Sleep(24 * time.Hour)
		if n, want := heartbeats(), 4*24*120; n < want*99/100 || n > want*101/100 {
			t.Errorf("%d heartbeats in a day, want about %d", n, want)
		}
		for _, id := range ids {
			if d, _ := w.hub.Device(id); d.Connections != 1 || d.Joins != 1 || !d.Joined || d.Stale {
				t.Errorf("a quiet day was not quiet: %s", w.state(id))
			}
		}
		w.must(w.hub.Drop("a"))
		w.until("a", "a join after a drop", time.Minute, func(d hubtest.DeviceState) bool { return d.Joined && d.Connections == 2 })
		w.must(w.hub.Reconnect("b"))
		w.until("b", "a join after 1001", time.Minute, func(d hubtest.DeviceState) bool { return d.Joined && d.Connections == 2 })
		time.Sleep(24 * time.Hour)

		begun := time.Now()
		w.hub.Drain()
		for _, id := range ids {
			w.until(id, "a join after the drain", 2*time.Minute, func(d hubtest.DeviceState) bool { return d.Joined && d.Connections >= 2 })
		}
		if waited := time.Since(begun); waited < 5*time.Second {
			t.Errorf("came back %s after a drain began: a draining node still accepts", waited)
		}
		time.Sleep(time.Hour)

		before := map[string]int{}
		for _, id := range ids {
			d, _ := w.hub.Device(id)
			before[id] = d.Connections
			w.must(w.hub.Vanish(id))
		}
		begun = time.Now()
		for _, id := range ids {
			w.until(id, "a new connection after silence", 3*time.Minute, func(d hubtest.DeviceState) bool {
				return d.Joined && d.Connections > before[id]
			})
		}
		if waited := time.Since(begun); waited > 95*time.Second {
			t.Errorf("a half-open link was noticed and replaced only after %s", waited)
		}
		for _, id := range ids {
			w.must(w.hub.Reboot(id))
		}
		time.Sleep(24 * time.Hour)
		for _, id := range ids {
			w.clean(id)
			if n := w.devices[id].Counts(); n.Reboots != 1 {
				t.Errorf("%s rebooted %d times for one command", id, n.Reboots)
			}
		}
	})
}

// TestReboot: after the command NervesHub sees the device join anew.
func TestReboot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"r"}, nil)
		w.switchOn("r", nil)
		w.until("r", "a join", time.Minute, joined)
		w.must(w.hub.Identify("r"))
		w.must(w.hub.Reboot("r"))
		w.until("r", "a second join", time.Minute, func(d hubtest.DeviceState) bool { return d.Joins == 2 && d.Joined })
		if n := w.devices["r"].Counts(); n.Reboots != 1 || n.Identifies != 1 {
			t.Errorf("got %+v", n)
		}
		w.clean("r")
	})
}

// TestFaults: whatever a device does, its channel never crashes, and it is
// still, or again, able to take an update.
func TestFaults(t *testing.T) {
	for _, fault := range device.Faults {
		t.Run(string(fault), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, []string{"bad", "good"}, func(_ *gateway.Config, h *hubtest.Config) {
					h.Group.FailureThreshold, h.Group.FailureRateAmount = 100, 100
				})
				w.switchOn("good", nil)
				off := w.switchOn("bad", func(c *device.Config) {
					c.Faults, c.Seed, c.Trouble, c.Flash = []device.Fault{fault}, 7, 10*time.Second, 1024
				})
				w.until("good", "a join", time.Minute, joined)
				w.must(w.hub.SetRelease(uuid11))
				w.until("good", "the update of the good device", 5*time.Minute, func(d hubtest.DeviceState) bool { return d.Metadata.Version == "1.1.0" })
				time.Sleep(2 * time.Minute)
				if fault == device.FaultNeverHello {
					if d, _ := w.hub.Device("bad"); d.Connections != 0 {
						t.Errorf("a device that never said hello was connected: %s", w.state("bad"))
					}
				}
				off()
				time.Sleep(time.Minute) // longer than the linger
				if d, _ := w.hub.Device("bad"); d.Socket {
					t.Errorf("NervesHub still sees a device that has left: %s", w.state("bad"))
				}
				w.switchOn("bad", func(c *device.Config) {
					c.Firmware = device.Firmware{Version: "1.2.0", UUID: uuid12, Product: device.DefaultFirmware.Product,
						Platform: device.DefaultFirmware.Platform, Architecture: device.DefaultFirmware.Architecture}
				})
				w.must(w.hub.SetRelease(uuid12))
				w.until("bad", "the mended device on 1.2.0", 5*time.Minute, func(d hubtest.DeviceState) bool {
					return d.Joined && d.Metadata != nil && d.Metadata.Version == "1.2.0"
				})
				w.clean("bad")
				w.clean("good")
			})
		})
	}
}

// TestRefused: every way to be turned away ends in a named state and a bounded
// rate, and heals by itself.
func TestRefused(t *testing.T) {
	for _, how := range hubtest.Refusals {
		t.Run(string(how), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, []string{"x"}, nil)
				const times = 6
				w.hub.Refuse("x", how, times)
				begun := time.Now()
				w.switchOn("x", nil)
				d := w.until("x", "a join in the end", 20*time.Minute, joined)
				took := time.Since(begun)
				low, high := 70*time.Second, 10*time.Minute
				switch how {
				case hubtest.RefuseShed:
					low, high = 6*time.Second, 40*time.Second
				case hubtest.Refuse503:
					low, high = 10*time.Second, 5*time.Minute
				}
				if took < low || took > high {
					t.Errorf("%d refusals took %s, want %s to %s", times, took, low, high)
				}
				if d.Socket && !d.Joined {
					t.Error("a socket without a joined channel was kept")
				}
			})
		})
	}
}

// TestContested: somebody else has the identity. The gateway gives way ever
// more slowly instead of fighting.
func TestContested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"x"}, nil)
		w.switchOn("x", nil)
		w.until("x", "a join", time.Minute, joined)
		for range 200 {
			time.Sleep(3 * time.Second)
			w.hub.Reconnect("x") // closes with 1001, as a takeover does
		}
		if d, _ := w.hub.Device("x"); d.Connections > 12 {
			t.Errorf("%d connections in 10 minutes of takeovers", d.Connections)
		}
		if !strings.Contains(w.log.String(), "cause=contested") {
			t.Errorf("nobody was told:\n%s", w.log)
		}
	})
}

// TestShutdown: the gateway ends quickly with devices that are silent, and says
// goodbye to NervesHub.
func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"x"}, nil)
		w.switchOn("x", nil)
		w.until("x", "a join", time.Minute, joined)
		silent, err := w.mqttNet.Dial(t.Context(), "", "")
		w.must(err)
		defer silent.Close()
		begun := time.Now()
		w.stop()
		w.until("x", "the goodbye", 5*time.Second, func(d hubtest.DeviceState) bool { return !d.Socket })
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// TestTwoIdentities: two devices behind one gateway never speak as each other,
// whatever crypto/tls could resume.
func TestTwoIdentities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ids := []string{"one", "two"}
		w := newWorld(t, ids, nil)
		w.registry.EnableTLS13() // it has session tickets
		for i, id := range ids {
			w.switchOn(id, func(c *device.Config) {
				c.Firmware = device.DefaultFirmware
				c.Firmware.Version = fmt.Sprintf("1.0.%d", i)
			})
			w.until(id, "a join", time.Minute, joined)
			w.must(w.hub.Drop(id))
		}
		for i, id := range ids {
			d := w.until(id, "a second join", time.Minute, func(d hubtest.DeviceState) bool { return d.Joined && d.Connections >= 2 })
			if want := fmt.Sprintf("1.0.%d", i); d.Metadata.Version != want {
				t.Errorf("%s runs %s at NervesHub, want %s", id, d.Metadata.Version, want)
			}
		}
	})
}
