package mqtt_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/internal/memnet"
	"ganglion/mqtt"
)

func TestConnectRefused(t *testing.T) {
	var log lockedBuffer
	onMemory(t, mqtt.EmbeddedConfig{Log: slog.New(slog.NewTextHandler(&log, nil))}, func(t *testing.T, b *broker) {
		for _, id := range []string{
			"", "gateway", "+", "#", "a/b", "$SYS", "..", ".a", "-a", "a b", "a\x01", "ü", "a\u202eb", "\ufeffa", "%s",
			strings.Repeat("a", 65), strings.Repeat("a", 3000),
		} {
			if ack := b.socket().hello(rawConnect{id: id}); ack[1] != 2 {
				t.Errorf("%.20q: CONNACK %x, want 2", id, ack)
			}
			if ack := b.socket().hello(rawConnect{id: id, v5: true}); ack[1] != 0x85 || len(ack) < 40 {
				t.Errorf("%.20q: CONNACK %x, want 85 and a reason", id, ack)
			}
			time.Sleep(10 * time.Second)
		}
		if ack := b.socket().hello(rawConnect{id: "me", user: "you"}); ack[1] != 5 {
			t.Errorf("foreign user name: CONNACK %x", ack)
		}
		if ack := b.socket().hello(rawConnect{id: "me", v5: true, props: append([]byte{21}, mqttString("SCRAM")...)}); ack[1] != 0x8c {
			t.Errorf("authentication method: CONNACK %x", ack)
		}
		for _, line := range []string{`client id \"gateway\" is no device identifier`, "user name is not the client id me"} {
			if !strings.Contains(log.String(), line) {
				t.Errorf("not in the log: %s\n%s", line, log.String())
			}
		}
		b.expect(t)
		b.connect(rawConnect{id: "me", user: "me"})
		b.connect(rawConnect{id: strings.Repeat("a", 64)})
	})
}

func TestLimits(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{MaxDevices: 2, MaxSockets: 4}, func(t *testing.T, b *broker) {
		b.connect(rawConnect{id: "a"})
		b.connect(rawConnect{id: "b"})
		if ack := b.socket().hello(rawConnect{id: "c"}); ack[1] != 3 {
			t.Errorf("CONNACK %x, want 3", ack)
		}
		if ack := b.socket().hello(rawConnect{id: "c", v5: true}); ack[1] != 0x89 {
			t.Errorf("CONNACK %x, want 89", ack)
		}
		again := b.connect(rawConnect{id: "a"}) // a takeover is no further device
		b.socket()
		b.socket()
		b.socket().gone(time.Second)
		_ = again.Close()
		synctest.Wait()
		b.connect(rawConnect{id: "c"})
	})
}

// farListener gives its connections an address that is not loopback.
type farListener struct{ *memnet.Listener }

type farConn struct{ net.Conn }

func (farConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 168, 1, 7), Port: 1} }

func (l farListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return farConn{c}, err
}

func TestLimitPerAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := farListener{memnet.Listen()}
		b := runBroker(t, mqtt.EmbeddedConfig{Listener: l, MaxPerIP: 3}, newWitness(), func() (net.Conn, error) { return l.Dial(t.Context(), "", "") })
		first := b.connect(rawConnect{id: "d0"})
		b.connect(rawConnect{id: "d1"})
		b.connect(rawConnect{id: "d2"})
		b.socket().gone(time.Second)
		_ = first.Close()
		synctest.Wait()
		b.connect(rawConnect{id: "d3"})
	})
}

func TestManyDevicesFromLoopback(t *testing.T) {
	const n = 500
	b := onLoopback(t, mqtt.EmbeddedConfig{}, newWitness())
	clients := make([]*rawClient, n)
	for i := range clients {
		clients[i] = b.device(rawConnect{id: fmt.Sprint("d", i)})
	}
	for i := range clients {
		b.publish(mqtt.Message{Device: fmt.Sprint("d", i), Name: "reboot"})
	}
	for i, c := range clients {
		if p := c.take(); p.topic != fmt.Sprintf("nh/d%d/down/reboot", i) {
			t.Fatal(p)
		}
	}
	if h := b.Health(); h.Devices != n {
		t.Fatalf("%+v", h)
	}
}

func TestQoS2IsReceivedOnce(t *testing.T) {
	for _, v5 := range []bool{false, true} {
		onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
			c := b.device(rawConnect{id: "d", v5: v5})
			for id := uint16(1); id <= 3; id++ {
				for range 3 {
					c.publish("nh/d/up/status", fmt.Sprint("s", id), 2, id, false)
					c.expect(0x50)
				}
				for range 2 {
					c.send([]byte{0x62, 2, 0, byte(id)})
					c.expect(0x70)
				}
			}
			c.publish("nh/d/up/status", "again", 2, 1, false) // the identifier is free again
			c.expect(0x50)
			version := map[bool]int{false: 4, true: 5}[v5]
			b.expect(t, fmt.Sprintf("d online v%d packet 0", version), "d status=s1", "d status=s2", "d status=s3", "d status=again")
		})
	}
}

func TestPublishElsewhere(t *testing.T) {
	topics := []string{"nh/other/up/status", "nh/d/down/update", "nh/gateway", "nh/d/up", "nh/d/up/", "elsewhere", "nh/d/upx/a",
		"$SYS", "$SYS/broker", "$sys/nh/d/up/a", "$SYSTEM"}
	for _, v5 := range []bool{false, true} {
		onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
			other := b.device(rawConnect{id: "other"})
			other.subscribe("nh/gateway", 1)
			c := b.device(rawConnect{id: "d", v5: v5})
			for i, topic := range topics {
				for qos, answer := range []byte{0, 0x40, 0x50} {
					id := uint16(10*i + qos)
					c.publish(topic, "spoof", byte(qos), id, true)
					if qos == 0 {
						continue
					}
					ack := c.expect(answer)
					if v5 && (len(ack) < 3 || ack[2] != 0x87) {
						t.Errorf("%s: %x", topic, ack)
					}
				}
			}
			c.alive()
			other.silent(time.Second)
			c.silent(time.Second)
			if n := b.Health().Dropped["acl"]; n != uint64(3*len(topics)) {
				t.Errorf("%d counted", n)
			}
			for _, line := range b.log() {
				if strings.Contains(line, "spoof") {
					t.Error(line)
				}
			}
		})
	}
}

func TestRetainedPublishIsRefused(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		c := b.device(rawConnect{id: "d"})
		c.publish("nh/d/up/status", "idle", 1, 1, true)
		c.expect(0x40)
		c.publish("nh/d/up/online", "1", 1, 2, true) // the gateway sees for itself
		c.expect(0x40)
		b.expect(t, "d online v4 packet 0", "d refused status: mqtt: retained publish")
	})
}

// What a device published is the handler's to keep.
func TestPayloadIsKept(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		var kept [][]byte
		b.received = func(_, _ string, p []byte) error { kept = append(kept, p); return nil }
		c := b.connect(rawConnect{id: "d"})
		for i := range 50 {
			c.publish("nh/d/up/log", strings.Repeat(string(rune('a'+i%26)), 40), 1, 1, false)
			c.expect(0x40)
		}
		for i, p := range kept {
			if string(p) != strings.Repeat(string(rune('a'+i%26)), 40) {
				t.Fatalf("payload %d is now %s", i, p)
			}
		}
	})
}

// A device that connects again has never been away: what it was owed it gets.
func TestTakeoverKeepsCommands(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		old := b.device(rawConnect{id: "d", v5: true})
		for i := range 30 {
			b.publish(mqtt.Message{Device: "d", Name: "cmd", Payload: fmt.Append(nil, i)})
		}
		for range 3 {
			old.take()
		}
		for range 16 {
			old.receive() // and never acknowledges
		}
		b.connect(rawConnect{id: "d"}) // takes over, and is taken over before it has subscribed
		if body := old.expect(0xe0); body[0] != 0x8e {
			t.Fatalf("DISCONNECT %x", body)
		}
		old.gone(time.Second)
		c := b.device(rawConnect{id: "d"})
		for i := 3; i < 30; i++ {
			if p := c.take(); p.payload != fmt.Sprint(i) {
				t.Fatal(p)
			}
		}
		c.silent(time.Second)
		_ = c.Close()
		synctest.Wait()
		b.expect(t, "d online v5 packet 0", "d online v4 packet 0", "d online v4 packet 0", "d offline")
		if h := b.Health(); len(h.Dropped) != 0 {
			t.Fatalf("%+v", h)
		}
	})
}

// A strictHandler fails the test when calls for one device overlap or come in
// an order that makes no sense.
type strictHandler struct {
	t      testing.TB
	busy   atomic.Bool
	online atomic.Bool
	calls  atomic.Int64
}

func (h *strictHandler) enter(what string, wantOnline bool) func() {
	h.calls.Add(1)
	if h.busy.Swap(true) {
		h.t.Errorf("%s during another call", what)
	}
	if wantOnline && !h.online.Load() {
		h.t.Errorf("%s of a device that is offline", what)
	}
	return func() { h.busy.Store(false) }
}

func (h *strictHandler) Online(string, mqtt.Client) {
	defer h.enter("Online", false)()
	h.online.Store(true)
}
func (h *strictHandler) Offline(string) { defer h.enter("Offline", true)(); h.online.Store(false) }
func (h *strictHandler) Refused(string, string, error) {
	defer h.enter("Refused", true)()
}
func (h *strictHandler) Received(string, string, []byte) error {
	defer h.enter("Received", true)()
	return nil
}

// Many connections of one device at once, over TCP, ended in every way.
func TestTakeoverStorm(t *testing.T) {
	h := &strictHandler{t: t}
	b := onLoopback(t, mqtt.EmbeddedConfig{}, h)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 25 {
				conn, err := b.dial()
				if err != nil {
					t.Error(err)
					return
				}
				c := newRawClient(t, conn)
				_, _ = c.Write(rawConnect{id: "d", v5: i%2 == 0, will: "nh/d/up/log", willPayload: "x"}.packet())
				_, _ = c.Write(rawFrame(0x30, append(mqttString("nh/d/up/log"), 0)))
				switch (g + i) % 3 {
				case 0: // gone before its CONNACK
				case 1:
					_, _, _ = c.packet(5 * time.Second)
				case 2:
					_, _, _ = c.packet(5 * time.Second)
					_, _ = c.Write([]byte{0xe0, 0})
				}
				_ = b.Publish(mqtt.Message{Device: "d", Name: "cmd"})
				_ = conn.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, conn) // until the broker has let go of it
				_ = conn.Close()
			}
		})
	}
	wg.Wait()
	last := b.device(rawConnect{id: "d"})
	for errors.Is(b.Publish(mqtt.Message{Device: "d", Name: "end"}), mqtt.ErrQueueFull) {
		last.take() // it may have taken over what the storm left
	}
	for last.take().topic != "nh/d/down/end" {
	}
	if h := b.Health(); h.Devices != 1 {
		t.Errorf("%+v", h)
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	if h.online.Load() || h.calls.Load() < 10 {
		t.Errorf("online at the end: %v, after %d calls", h.online.Load(), h.calls.Load())
	}
	if n := b.Remembered(); n != 0 {
		t.Errorf("%d devices remembered", n)
	}
}

func TestShutdown(t *testing.T) {
	b := onLoopback(t, mqtt.EmbeddedConfig{}, newWitness())
	polite, plain := b.device(rawConnect{id: "polite", v5: true}), b.device(rawConnect{id: "plain"})
	stalled := b.device(rawConnect{id: "stalled"})
	b.socket()
	for b.Publish(mqtt.Message{Device: "stalled", Name: "fw", Payload: make([]byte, 1<<20)}) == nil {
		// until its socket and its queue are full
	}
	for _, c := range []*rawClient{polite, plain} {
		c.subscribe("nh/gateway", 1)
	}
	b.publish(mqtt.Message{Name: "gateway", Payload: []byte("offline"), Retain: true})
	began := time.Now()
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("Run ended after %v", time.Since(began))
	for _, c := range []*rawClient{polite, plain} {
		if p := c.receive(); p.payload != "offline" {
			t.Fatal(p)
		}
	}
	if body := polite.expect(0xe0); body[0] != 0x8b {
		t.Fatalf("DISCONNECT %x", body)
	}
	polite.gone(time.Second)
	plain.gone(time.Second)
	_ = stalled.Close()
	if err := b.Publish(mqtt.Message{Device: "plain", Name: "update", Retain: true}); !errors.Is(err, mqtt.ErrOffline) {
		t.Error(err)
	}
	if h := b.Health(); h.Err == nil || h.Devices != 0 {
		t.Errorf("%+v", h)
	}
	if err := b.Run(t.Context(), b.witness); err == nil {
		t.Error("Run a second time")
	}
}

// Somebody else closes the listener: nobody can be served, and Run says so.
func TestListenerClosed(t *testing.T) {
	l := memnet.Listen()
	e, err := mqtt.NewEmbedded(mqtt.EmbeddedConfig{Topics: prefix, Listener: l})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Health().Err; err == nil {
		t.Error("healthy before Run")
	}
	_ = l.Close()
	if err := e.Run(t.Context(), newWitness()); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("Run: %v", err)
	}
}

// What breaks on one device's message costs that device its connection.
func TestHandlerPanics(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		b.received = func(string, string, []byte) error { panic("nonsense") }
		other := b.device(rawConnect{id: "other"})
		c := b.connect(rawConnect{id: "d", will: "nh/d/up/log", willPayload: "x"})
		c.publish("nh/d/up/hello", "x", 1, 1, false)
		c.gone(time.Second)
		synctest.Wait()
		other.alive()
		b.expect(t, "other online v4 packet 0", "d online v4 packet 0", "d hello=x", "d log=x", "d offline")
		if n := b.Health().Dropped["panic"]; n != 2 {
			t.Errorf("%d panics counted", n)
		}
	})
}
