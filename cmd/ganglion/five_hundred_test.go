package main

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"ganglion/internal/device"
	"ganglion/internal/hubtest"
)

// TestFiveHundred: a site's worth of devices on one gateway, over real TCP and
// TLS. They are connected no faster than asked, each command reaches its device
// once, and nothing is left of them when they go or the gateway does.
func TestFiveHundred(t *testing.T) {
	t.Parallel()
	const (
		count  = 500
		rate   = 50 // hub.dials_per_second of the site
		within = 150 * time.Second
	)
	var ids []string
	for i := range count {
		ids = append(ids, fmt.Sprintf("probe-%04d", i+1)) // as a device.Fleet names them
	}
	s := newSite(t, ids...)
	g := s.run()
	before := g.metric("go_goroutines")
	fleet := device.NewFleet(device.Config{Broker: g.mqtt, ID: "probe", Boot: 200 * time.Millisecond}, count, time.Millisecond)
	all := func(what string, cond func(hubtest.DeviceState) bool) {
		t.Helper()
		begun := time.Now()
		for _, id := range ids {
			s.until(id, what, within-time.Since(begun), cond)
		}
		t.Logf("%s: %.1f s", what, time.Since(begun).Seconds())
	}

	off := s.switchOn(fleet.Run)
	all("a join", isJoined)
	checkRate(t, s.gate.accepted(), count, rate)

	for _, id := range ids {
		s.must(s.hub.Reboot(id))
	}
	all("a second join", func(d hubtest.DeviceState) bool { return d.Joined && d.Joins >= 2 })

	off()
	all("the end of the socket", func(d hubtest.DeviceState) bool { return !d.Socket })
	checkGoroutines(t, g, before)

	joins := map[string]int{}
	for _, id := range ids {
		d, _ := s.hub.Device(id)
		joins[id] = d.Joins
	}
	s.switchOn(fleet.Run)
	all("a join when they are back", func(d hubtest.DeviceState) bool { return d.Joined && d.Joins > joins[d.ID] })
	checkOnce(t, fleet)

	checkEnd(t, g)
	all("the goodbye", func(d hubtest.DeviceState) bool { return !d.Socket })
	for _, id := range ids {
		if d, _ := s.hub.Device(id); len(d.Crashes) > 0 || d.Evictions > 0 || d.Refused > 0 {
			t.Errorf("%s: %s", id, summary(d))
		}
	}
}

// checkOnce: each device got one command, and executed it once.
func checkOnce(t *testing.T, fleet *device.Fleet) {
	t.Helper()
	for _, d := range fleet.Devices {
		n := d.Counts()
		if n.Reboots != 1 || len(n.Commands) != 1 || n.Repeated != 0 {
			t.Errorf("%s rebooted %d times for one command: %v, %d repeated", d.ID(), n.Reboots, n.Commands, n.Repeated)
		}
		for ref, times := range n.Commands {
			if times != 1 {
				t.Errorf("%s executed ref %d %d times", d.ID(), ref, times)
			}
		}
	}
}

// checkEnd: SIGTERM ends the gateway with 0 in under 5 s.
func checkEnd(t *testing.T, g running) {
	t.Helper()
	begun := time.Now()
	g.signal(syscall.SIGTERM)
	code, took := g.exit(patience), time.Since(begun)
	t.Logf("SIGTERM: %.1f s", took.Seconds())
	if code != 0 || took > 5*time.Second {
		t.Errorf("SIGTERM ended the gateway with %d after %s", code, took)
	}
}

// checkGoroutines: the gateway soon has as many as before, give or take those of
// the page itself.
func checkGoroutines(t *testing.T, g running, before float64) {
	t.Helper()
	const few = 10
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for late := time.After(patience); ; {
		now := g.metric("go_goroutines")
		if now <= before+few {
			return
		}
		select {
		case <-again.C:
		case <-late:
			t.Fatalf("%.0f goroutines before the first device, and %.0f after the last", before, now)
		}
	}
}

// checkRate: no stretch of time saw more connections than the rate allows, with
// a tenth of a second's worth at once. late is what a connection may be held up
// on its way while another is not.
func checkRate(t *testing.T, came []time.Time, count, rate int) {
	t.Helper()
	const late = time.Second
	if len(came) != count {
		t.Errorf("%d connections for %d devices", len(came), count)
	}
	for i := range came {
		for j := i; j < len(came); j++ {
			most := float64(rate)/10 + float64(rate)*(came[j].Sub(came[i])+late).Seconds()
			if n := j - i + 1; float64(n) > most+1 {
				t.Fatalf("%d connections within %s at %d per second", n, came[j].Sub(came[i]), rate)
			}
		}
	}
}
