package device_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/internal/device"
)

func faulty(faults ...device.Fault) device.Config {
	return device.Config{Faults: faults, Seed: 7, Flash: 100_000}
}

func TestFaultDrop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, faulty(device.FaultDrop), nil)
		time.Sleep(10 * time.Minute)
		var lives []time.Duration
		connected := time.Time{}
		for _, e := range b.drain() {
			switch w := e.What.(type) {
			case device.Connected:
				connected = e.At
			case device.Misbehaved:
				if w.Fault != device.FaultDrop {
					t.Errorf("got %v", w)
				}
				lives = append(lives, e.At.Sub(connected))
			}
		}
		slices.Sort(lives)
		if n := len(lives); n < 60 || lives[0] < 0 || lives[0] > time.Second || lives[n-1] < 9*time.Second || lives[n-1] > 10*time.Second {
			t.Errorf("%d connections in 10 minutes lived %v", n, lives)
		}
		for _, h := range b.said() {
			if h.kind == 14 {
				t.Fatal("a cut connection says DISCONNECT")
			}
		}
	})
}

// On TCP some of the cuts are resets.
func TestFaultDropResets(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ends := make(chan error, 100)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "\x20\x02\x00\x00")
			_, err = io.Copy(io.Discard, c)
			c.Close()
			select {
			case ends <- err:
			default: // enough seen
			}
		}
	})
	c := faulty(device.FaultDrop)
	c.Broker, c.ID, c.Trouble, c.Retry = l.Addr().String(), "probe", time.Millisecond, time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	wg.Go(func() { done <- device.New(c).Run(ctx) })
	defer func() {
		cancel()
		l.Close()
		wg.Wait()
	}()
	limit := time.After(10 * time.Second)
	for resets, closes := 0, 0; resets == 0 || closes == 0; {
		select {
		case err := <-ends:
			if err != nil {
				resets++
			} else {
				closes++
			}
		case err := <-done:
			t.Fatal(err)
		case <-limit:
			t.Fatalf("%d resets and %d closes", resets, closes)
		}
	}
}

func TestFaultReboot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		b := start(t, faulty(device.FaultReboot), s)
		event[device.HelloAcknowledged](t, b)
		said := offer("http://web/f", firmwareImage, upperSum(firmwareImage))
		b.send(updateTopic, said)
		if got := event[device.Misbehaved](t, b); got.Fault != device.FaultReboot {
			t.Fatalf("got %v", got)
		}
		event[device.HelloAcknowledged](t, b)
		if hellos := b.payloads("nh/probe/up/hello"); len(hellos) != 2 || hellos[0] != hellos[1] {
			t.Errorf("hellos %q, want the old firmware twice", hellos)
		}
		if got := b.payloads("nh/probe/up/rebooting"); len(got) != 0 {
			t.Error("a power cut announces itself")
		}
		b.send(updateTopic, said)
		if got := event[device.Validated](t, b); got.Version != "1.5.0" {
			t.Errorf("got %v", got)
		}
		ranges := s.asked()
		at := 0
		if len(ranges) == 2 {
			at, _ = strconv.Atoi(strings.Trim(ranges[1], "bytes=-"))
		}
		if at < len(firmwareImage)/5 || at > len(firmwareImage)*3/4 {
			t.Errorf("ranges %q, want the second from where the power was cut", ranges)
		}
	})
}

func TestFaultStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, faulty(device.FaultStall), nil)
		event[device.HelloAcknowledged](t, b)
		b.send("nh/probe/down/identify", `{"ref":1}`)
		time.Sleep(time.Hour)
		if n := b.device.Counts().Identifies; n != 0 {
			t.Errorf("%d identifies by a device that does not read", n)
		}
		pings := 0
		for _, h := range b.said() {
			if h.kind == 12 {
				pings++
			}
		}
		if n := b.device.Counts().Connects; n != 1 || pings < 150 {
			t.Errorf("%d connections and %d pings in an hour", n, pings)
		}
		b.Drop() // noticed when it next says something
		event[device.HelloAcknowledged](t, b)
	})
}

func TestFaultFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, faulty(device.FaultFlood), nil)
		event[device.HelloAcknowledged](t, b)
		before := len(b.said())
		time.Sleep(10 * time.Second)
		if n := len(b.said()) - before; n < 4900 || n > 5100 {
			t.Errorf("%d messages in 10 s, want 5000", n)
		}
		b.send("nh/probe/down/identify", `{"ref":1}`)
		event[device.Identified](t, b)
	})
}

func TestFaultGarbage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, faulty(device.FaultGarbage), nil)
		time.Sleep(30 * time.Minute)
		kinds := map[string]int{}
		for _, e := range b.drain() {
			if w, ok := e.What.(device.Misbehaved); ok {
				kinds[w.Detail]++
			}
		}
		if len(kinds) != 16 { // 15 packets, and the payloads
			t.Errorf("%d kinds of garbage: %v", len(kinds), kinds)
		}
		names := map[string]int{}
		for _, h := range b.said() {
			if name, ok := strings.CutPrefix(h.topic, "nh/probe/up/"); ok && h.conn < 3 {
				names[name]++
			}
			if len(h.topic)+len(h.payload) > 2048 {
				t.Fatalf("%d bytes on %s, more than a packet", len(h.payload), h.topic)
			}
		}
		for _, name := range []string{"hello", "progress", "status", "validated", "rebooting", "fw", "interface", "health", "geo",
			"log", "net", "console", "shell", "script", "nonsense"} {
			if names[name] < 17 {
				t.Errorf("%d malformed payloads on %s", names[name], name)
			}
		}
	})
}

func TestFaultFloatProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, faulty(device.FaultFloatProgress), &store{})
		event[device.HelloAcknowledged](t, b)
		b.send(updateTopic, offer("http://web/f", firmwareImage, ""))
		event[device.Validated](t, b) // it is an update for all that
		got := b.payloads(progressTopic)
		for _, want := range []string{"42.5", `"50"`, "NaN", `{"value":42.5}`, `{"value":"50"}`} {
			if !slices.Contains(got, want) {
				t.Errorf("no progress %s in %q", want, got)
			}
		}
	})
}

func TestFaultDoubleFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, faulty(device.FaultDoubleFinal), &store{})
		event[device.HelloAcknowledged](t, b)
		b.send(updateTopic, offer("http://web/f", firmwareImage, ""))
		event[device.Misbehaved](t, b)
		time.Sleep(time.Hour)
		failed := `{"status":"failed","reason":"simulated"}`
		if got, want := b.payloads(statusTopic), []string{`{"status":"received"}`, `{"status":"started"}`, failed, failed}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if c := b.device.Counts(); c.Updates != 0 || c.Reboots != 0 {
			t.Errorf("counts %+v", c)
		}
	})
}

func TestFaultNeverHello(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, faulty(device.FaultNeverHello), nil)
		event[device.Subscribed](t, b)
		time.Sleep(time.Hour)
		for _, h := range b.said() {
			if h.kind == 3 {
				t.Fatalf("published %s %s", h.topic, h.payload)
			}
		}
		b.send("nh/probe/down/reboot", `{"ref":1}`)
		event[device.Running](t, b)
		event[device.Subscribed](t, b)
	})
}

func TestFaultRevert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, faulty(device.FaultRevert), &store{})
		event[device.HelloAcknowledged](t, b)
		b.send(updateTopic, offer("http://web/f", firmwareImage, ""))
		event[device.Misbehaved](t, b)
		event[device.HelloAcknowledged](t, b)
		hellos := b.payloads("nh/probe/up/hello")
		if want := strings.Replace(hellos[0], `"reverted":false`, `"reverted":true`, 1); len(hellos) != 2 || hellos[1] != want {
			t.Errorf("hellos %q, want the second to say reverted and no more", hellos)
		}
	})
}

func TestFaultRetained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, faulty(device.FaultRetained), &store{})
		event[device.HelloAcknowledged](t, b)
		b.send(updateTopic, offer("http://web/f", firmwareImage, ""))
		event[device.Validated](t, b)
		synctest.Wait()
		names := map[string]bool{}
		for _, h := range b.said() {
			if h.kind != 3 {
				continue
			}
			if names[h.topic] = true; h.flags&1 == 0 {
				t.Errorf("%s is not retained", h.topic)
			}
		}
		if len(names) != 5 { // hello, status, progress, rebooting, validated
			t.Errorf("published %v", names)
		}
	})
}

// A seed decides what happens and when.
func TestSeed(t *testing.T) {
	run := func(seed uint64) string {
		var told strings.Builder
		synctest.Test(t, func(t *testing.T) {
			c := faulty(device.FaultDrop, device.FaultGarbage)
			c.Seed = seed
			b := start(t, c, nil)
			from := time.Now()
			time.Sleep(10 * time.Minute)
			for _, e := range b.drain() {
				if w, ok := e.What.(device.Misbehaved); ok {
					fmt.Fprintln(&told, e.At.Sub(from), w)
				}
			}
		})
		return told.String()
	}
	one, two, other := run(1), run(1), run(2)
	if one != two {
		t.Errorf("one seed, two stories:\n%s\n%s", one, two)
	}
	if one == other || strings.Count(one, "\n") < 50 {
		t.Errorf("two seeds, one story, or a short one:\n%s", one)
	}
}
