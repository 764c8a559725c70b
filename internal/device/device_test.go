package device_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/internal/device"
)

func TestFirstWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, device.Config{Interface: "wifi"}, nil)
		event[device.HelloAcknowledged](t, b)
		said := b.said()
		if len(said) != 3 {
			t.Fatalf("want CONNECT, SUBSCRIBE, hello:\n%s", b.transcript())
		}
		if want := "\x00\x04MQTT\x04\x02\x00\x1e\x00\x05probe"; said[0].raw != want {
			t.Errorf("CONNECT %q, want %q", said[0].raw, want)
		}
		if want := "\x00\x0fnh/probe/down/#\x01\x00\x0anh/gateway\x01"; said[1].raw[2:] != want {
			t.Errorf("SUBSCRIBE %q, want %q", said[1].raw[2:], want)
		}
		if said[2].topic != "nh/probe/up/hello" || said[2].flags != 2 {
			t.Errorf("hello on %s with flags %d, want QoS 1, not retained", said[2].topic, said[2].flags)
		}
		want := `{"v":1,"version":"1.0.0","uuid":"8b0f9d54-52c9-5a0e-9c3a-5f1c8f7a1000","validated":true,"reverted":false,"packet":2048,` +
			`"product":"soil-probe","platform":"stm32l4","architecture":"arm","interface":"wifi"}`
		if said[2].payload != want {
			t.Errorf("hello\n%s\nwant\n%s", said[2].payload, want)
		}
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if said = b.said(); said[len(said)-1].kind != 14 {
			t.Errorf("no DISCONNECT at the end:\n%s", b.transcript())
		}
	})
}

func TestHelloForms(t *testing.T) {
	tests := []struct {
		name   string
		config device.Config
		want   []string // topic and payload of all that is published
	}{
		{"short", device.Config{ShortHello: true, Interface: "wifi"}, []string{"hello 1.0.0", "interface wifi"}},
		{"only a version", device.Config{Firmware: device.Firmware{Version: "2.0.0"}},
			[]string{`hello {"v":1,"version":"2.0.0","validated":true,"reverted":false,"packet":2048}`}},
		{"digest in place of a uuid", device.Config{Firmware: device.Firmware{Version: "2.0.0", SHA256: "ab"}},
			[]string{`hello {"v":1,"version":"2.0.0","sha256":"ab","validated":true,"reverted":false,"packet":2048}`}},
		{"packet too small for all", device.Config{Packet: 180},
			[]string{`hello {"v":1,"version":"1.0.0","uuid":"8b0f9d54-52c9-5a0e-9c3a-5f1c8f7a1000","validated":true,"reverted":false,"packet":180}`}},
		{"packet too small for JSON", device.Config{Packet: 128}, []string{"hello 1.0.0"}},
		{"foreign broker", device.Config{Online: true, ShortHello: true}, []string{"online 1", "hello 1.0.0"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := start(t, test.config, nil)
				event[device.HelloAcknowledged](t, b)
				synctest.Wait()
				var got []string
				for _, h := range b.said() {
					if name, ok := strings.CutPrefix(h.topic, "nh/probe/up/"); ok {
						got = append(got, name+" "+h.payload)
						if retained := h.flags&1 != 0; retained != (name == "online") {
							t.Errorf("%s: retained is %v", name, retained)
						}
					}
				}
				if !slices.Equal(got, test.want) {
					t.Errorf("got  %q\nwant %q", got, test.want)
				}
				will := "\x00\x12nh/probe/up/online\x00\x010"
				if got := strings.HasSuffix(b.said()[0].raw, will); got != test.config.Online {
					t.Errorf("will is %v in %q", got, b.said()[0].raw)
				}
			})
		})
	}
}

// Presence on a foreign broker ends with the device, will or no will.
func TestOnlineEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, device.Config{Online: true}, nil)
		event[device.HelloAcknowledged](t, b)
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		said := b.said()
		last := said[len(said)-2]
		if last.topic != "nh/probe/up/online" || last.payload != "0" || last.flags&1 == 0 || said[len(said)-1].kind != 14 {
			t.Errorf("want a retained 0, then DISCONNECT:\n%s", b.transcript())
		}
	})
}

// A ref is one command, however often it arrives and whatever reboots between.
func TestCommandOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, device.Config{Boot: 7 * time.Second}, nil)
		event[device.HelloAcknowledged](t, b)
		b.send("nh/probe/down/identify", `{"ref":16}`)
		b.send("nh/probe/down/identify", `{"ref":16}`)
		b.send("nh/probe/down/reboot", `{"ref":17}`)
		b.send("nh/probe/down/reboot", `{"ref":17}`)
		went, i := b.await(0, published("nh/probe/up/rebooting"))
		back, _ := b.await(i, func(h heard) bool { return h.kind == 1 })
		if gone := back.at.Sub(went.at); gone != 7*time.Second || back.conn != 2 {
			t.Errorf("back after %v on connection %d, want 7s on 2", gone, back.conn)
		}
		event[device.HelloAcknowledged](t, b)
		b.send("nh/probe/down/reboot", `{"ref":17}`)
		b.send("nh/probe/down/identify", `{"ref":18}`)
		event[device.Identified](t, b)
		c := b.device.Counts()
		if c.Reboots != 1 || c.Identifies != 2 || c.Commands[16] != 1 || c.Commands[17] != 1 || c.Commands[18] != 1 {
			t.Errorf("got %+v, want one reboot and two identifies", c)
		}
		for _, h := range b.said() {
			if h.kind == 14 {
				t.Error("a reset says DISCONNECT")
			}
		}
	})
}

func TestWhatTheGatewaySays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, device.Config{}, nil)
		event[device.HelloAcknowledged](t, b)
		b.send("nh/gateway", `{"state":"online","v":1,"id":"site-7","boot":17,"version":"0.3.0"}`)
		if got := event[device.Gateway](t, b); got != (device.Gateway{Online: true, Boot: 17}) {
			t.Errorf("got %+v", got)
		}
		b.send("nh/probe/down/link", "up")
		if got := event[device.Link](t, b); !got.Up || !b.device.Counts().Link {
			t.Errorf("got %+v, %+v", got, b.device.Counts())
		}
		b.send("nh/probe/down/error", `{"on":"status","code":"unknown_status","reason":"no"}`)
		if got := event[device.Error](t, b); got != (device.Error{On: "status", Code: "unknown_status", Reason: "no"}) {
			t.Errorf("got %+v", got)
		}
		b.send("nh/probe/down/shell/size", `{"width":80}`)
		if got := event[device.CommandReceived](t, b); got.Name != "shell/size" {
			t.Errorf("got %+v", got)
		}
		b.send("nh/probe/down/archive", strings.Repeat("x", 3000))
		if got := event[device.TooLarge](t, b); got.Topic != "nh/probe/down/archive" || got.Bytes < 3000 {
			t.Errorf("got %+v", got)
		}
		b.send("nh/gateway", `{"state":"offline","boot":17}`)
		if got := event[device.Gateway](t, b); got.Online || b.device.Counts().Link {
			t.Errorf("got %+v, link %v", got, b.device.Counts().Link)
		}
		synctest.Wait()
		acks := 0
		for _, h := range b.said() {
			if h.kind == 4 && h.raw == "\x00\x4d" {
				acks++
			}
		}
		if acks != 6 {
			t.Errorf("%d of 6 messages acknowledged", acks)
		}
	})
}

func TestKeepalive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, device.Config{Keepalive: 20 * time.Second}, nil)
		event[device.HelloAcknowledged](t, b)
		time.Sleep(time.Hour - time.Second)
		var last time.Time
		pings := 0
		for _, h := range b.said() {
			if !last.IsZero() && h.at.Sub(last) > 20*time.Second {
				t.Fatalf("silent for %v", h.at.Sub(last))
			}
			last = h.at
			if h.kind == 12 {
				pings++
			}
		}
		if n := b.device.Counts().Connects; n != 1 || pings != 239 { // 3600 s / 15 s
			t.Errorf("%d connections and %d pings in an hour, want 1 and 239", n, pings)
		}
	})
}

// A broker that vanishes without a word is noticed by its silence.
func TestBrokerVanishes(t *testing.T) {
	for name, vanish := range map[string]func(*bench){
		"blackhole": func(b *bench) { b.Blackhole() },
		"mute":      func(b *bench) { b.configure(func() { b.mute = true }) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := start(t, device.Config{Keepalive: 30 * time.Second}, nil)
				event[device.HelloAcknowledged](t, b)
				vanish(b)
				from := time.Now()
				event[device.Disconnected](t, b)
				if took := time.Since(from); took > 40*time.Second {
					t.Errorf("noticed after %v", took)
				}
				event[device.Connected](t, b)
			})
		})
	}
}

// What is not acknowledged is said again on the next connection, behind hello.
func TestStatusOutlivesConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, device.Config{}, nil)
		event[device.HelloAcknowledged](t, b)
		b.configure(func() { b.noAck = true })
		b.send("nh/probe/down/update", offer("http://web/refused", nil, ""))
		b.await(0, func(h heard) bool { return strings.Contains(h.payload, "rescheduled") })
		b.configure(func() { b.noAck = false })
		b.Drop()
		event[device.HelloAcknowledged](t, b)
		synctest.Wait()
		var second []string
		for _, h := range b.said() {
			if h.conn == 2 && h.kind == 3 {
				second = append(second, h.topic)
			}
		}
		const status = "nh/probe/up/status"
		if want := []string{"nh/probe/up/hello", status, status, status}; !slices.Equal(second, want) {
			t.Errorf("got %q, want %q", second, want)
		}
	})
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials []time.Time
		refuse := func(context.Context, string, string) (net.Conn, error) {
			dials = append(dials, time.Now())
			return nil, errors.New("no route")
		}
		b := start(t, device.Config{Dial: refuse}, nil)
		time.Sleep(10 * time.Minute)
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		most := time.Second
		even := 0
		for i := 1; i < len(dials); i++ {
			d := dials[i].Sub(dials[i-1])
			if d < most/2 || d > most {
				t.Errorf("wait %d is %v, want %v to %v", i, d, most/2, most)
			}
			if d == most || d == most/2 {
				even++
			}
			most = min(2*most, 30*time.Second)
		}
		if len(dials) < 20 || even > 3 {
			t.Errorf("%d dials in 10 minutes, %d without jitter", len(dials), even)
		}
	})
}

func TestRefusedByBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, device.Config{}, nil)
		event[device.HelloAcknowledged](t, b)
		b.configure(func() { b.refuse = 5 })
		b.Drop()
		event[device.Disconnected](t, b)
		if got := event[device.Disconnected](t, b); got.Err == nil || got.Err.Error() != "refused: not authorized" {
			t.Errorf("got %v", got.Err)
		}
		b.configure(func() { b.refuse = 0 })
		event[device.HelloAcknowledged](t, b)
	})
}

func TestCheck(t *testing.T) {
	good := device.Config{Broker: "h:1", ID: "probe"}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for field, spoil := range map[string]func(*device.Config){
		"broker":      func(c *device.Config) { c.Broker = "h" },
		"id":          func(c *device.Config) { c.ID = "gateway" },
		"prefix":      func(c *device.Config) { c.Prefix = "a/+" },
		"packet: 127": func(c *device.Config) { c.Packet = 127 },
		"packet: 150": func(c *device.Config) { c.Packet, c.Prefix = 150, strings.Repeat("x", 60) },
		"keepalive":   func(c *device.Config) { c.Keepalive = time.Millisecond },
		"boot":        func(c *device.Config) { c.Boot = -1 },
		"flash":       func(c *device.Config) { c.Flash = 1 },
		"username":    func(c *device.Config) { c.Username = strings.Repeat("x", 257) },
		"fault":       func(c *device.Config) { c.Faults = []device.Fault{"fire"} },
	} {
		c := good
		spoil(&c)
		if err := device.New(c).Run(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "device: "+field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func TestFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, stagger = 50, 20 * time.Millisecond
		before := runtime.NumGoroutine()
		b := newBroker(t)
		f := device.NewFleet(device.Config{Broker: "b:1", ID: "probe", Dial: b.Dial}, n, stagger)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		time.Sleep(n * stagger)
		synctest.Wait()
		if got := f.Totals(); got.Online != n || f.Devices[n-1].ID() != "probe-0050" {
			t.Errorf("%v, the last is %s", got, f.Devices[n-1].ID())
		}
		// Of the broker one goroutine per device, and one that accepts; of the
		// test one.
		if per := (runtime.NumGoroutine() - before - n - 2) / n; per > 2 {
			t.Errorf("%d goroutines per device", per)
		}
		var connects []time.Time
		for _, h := range b.said() {
			if h.kind == 1 {
				connects = append(connects, h.at)
			}
		}
		for i := 1; i < len(connects); i++ {
			if gap := connects[i].Sub(connects[i-1]); gap != stagger {
				t.Errorf("connect %d came %v after the one before", i, gap)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := f.Totals(); got.Online != 0 {
			t.Errorf("after the end: %v", got)
		}
	})
}

// offer is NervesHub's own update payload.
func offer(url string, image []byte, checksum string) string {
	m := map[string]any{
		"update_available": true, "firmware_url": url, "deployment_id": 31,
		"firmware_meta": map[string]any{"uuid": "0b9f6a34-7f43-5a1e-9d0b-6a1f2f0e8a77", "product": "soil-probe", "version": "1.5.0",
			"platform": "stm32l4", "architecture": "arm", "author": nil, "misc": nil},
	}
	if len(image) > 0 {
		m["size"] = len(image)
	}
	if checksum != "" {
		m["checksum"] = checksum
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(b)
}
