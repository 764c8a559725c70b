package gateway_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/internal/device"
	"ganglion/internal/gateway"
	"ganglion/internal/hubtest"
	"ganglion/internal/memnet"
)

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

// TestDays runs two days with everything a server does to its connections:
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
		if waited := time.Since(begun); waited > 75*time.Second {
			t.Errorf("a half-open link was noticed and replaced only after %s", waited)
		}
		for _, id := range ids {
			w.must(w.hub.Reboot(id))
		}
		time.Sleep(time.Hour)
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

// TestTwoGateways: two gateways with one identity take each other's place. They
// settle instead of fighting, and whoever holds the socket serves its device.
func TestTwoGateways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []string{"x"}, nil)
		w.switchOn("x", nil)
		w.until("x", "a join", time.Minute, joined)
		other := w.config
		other.ID, other.StateDir = "site-8", filepath.Join(w.dir, "other")
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		otherNet := memnet.Listen()
		w.startGateway(ctx, other, otherNet)
		w.switchOn("x", func(c *device.Config) { c.Dial = otherNet.Dial })
		time.Sleep(time.Minute)
		before, _ := w.hub.Device("x")
		time.Sleep(29 * time.Minute)
		after, _ := w.hub.Device("x")
		if n := before.Connections; n > 6 {
			t.Errorf("%d connections in the first minute", n)
		}
		if n := after.Connections - before.Connections; n > 29 {
			t.Errorf("%d more in the next 29", n)
		}
		if !after.Joined {
			t.Errorf("nobody serves the device: %s", w.state("x"))
		}
		if !strings.Contains(w.log.String(), "cause=contested") {
			t.Errorf("nobody was told:\n%s", w.log)
		}
		w.clean("x")
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
