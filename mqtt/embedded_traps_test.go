package mqtt_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/internal/memnet"
	"ganglion/mqtt"
)

// Each test here is named after a trap of mochi v2.7.9 that is closed around
// it. They are the gate for every other version.

// A socket that says nothing, or says it too slowly, before CONNECT.
func TestTrap01(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		silent, slow := b.socket(), b.socket()
		hello := rawConnect{id: "slow"}.packet()
		for _, c := range hello[:9] {
			slow.send([]byte{c})
			time.Sleep(time.Second)
		}
		silent.gone(1500 * time.Millisecond)
		slow.gone(1500 * time.Millisecond)
		b.connect(rawConnect{id: "next"})
	})
}

// Close waits for sockets without a CONNECT.
func TestTrap02(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		silent, half := b.socket(), b.socket()
		half.send(rawConnect{id: "half"}.packet()[:9])
		synctest.Wait()
		began := time.Now()
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Fatalf("Run took %v to end", took)
		}
		silent.gone(time.Second)
		half.gone(time.Second)
	})
}

// Memory is allocated for what a packet announces, before it is read.
func TestTrap03(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		claim := []byte{0x10, 0xff, 0xff, 0xff, 0x7f}
		for range 20 {
			c := b.socket()
			c.send(claim)
			c.gone(time.Second)
		}
		c := b.connect(rawConnect{id: "known"})
		c.send(append([]byte{0x30}, claim[1:]...))
		c.gone(time.Second)
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 8<<20 {
			t.Fatalf("allocated %d MiB", grown>>20)
		}
		for name, first := range map[string][]byte{
			"CONNECT of 4097 bytes":  {0x10, 0x81, 0x20},
			"PUBLISH":                {0x30, 0x05},
			"CONNECT with flags":     {0x11, 0x05},
			"endless length":         {0x10, 0x80, 0x80, 0x80, 0x80},
			"endless length of 0xff": {0x10, 0xff, 0xff, 0xff, 0xff},
		} {
			c := b.socket()
			for _, one := range first {
				_, _ = c.Write([]byte{one}) // it may be closed by now
				synctest.Wait()
			}
			if h, _, err := c.packet(time.Second); err == nil {
				t.Errorf("%s: answered with %x", name, h)
			} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Errorf("%s: still open", name)
			}
		}
		slow := b.socket() // one byte at a time is fine
		for _, one := range (rawConnect{id: "bytewise", will: "nh/bytewise/up/log", willPayload: strings.Repeat("x", 4000)}).packet() {
			slow.send([]byte{one})
			synctest.Wait()
		}
		slow.expect(0x20)
	})
}

// An MQTT 5 SUBSCRIBE without its options byte panics the decoder.
func TestTrap04(t *testing.T) {
	var log lockedBuffer
	onMemory(t, mqtt.EmbeddedConfig{Log: slog.New(slog.NewTextHandler(&log, nil))}, func(t *testing.T, b *broker) {
		other := b.device(rawConnect{id: "other"})
		for i := range 3 {
			c := b.device(rawConnect{id: "x", v5: true})
			c.send(rawFrame(0x82, append([]byte{0, 1, 0}, mqttString("nh/x/down/a")...)))
			c.gone(time.Second)
			b.wait(t, "x offline", i+1)
		}
		synctest.Wait()
		if n := b.Remembered(); n != 1 {
			t.Errorf("%d devices remembered, one is connected", n)
		}
		other.alive()
		x := b.connect(rawConnect{id: "x"})
		b.publish(mqtt.Message{Device: "x", Name: "reboot"})
		x.silent(time.Second) // it has not subscribed, the broken one had
		if n := b.Health().Dropped["panic"]; n != 3 {
			t.Errorf("%d panics counted", n)
		}
		if n := strings.Count(log.String(), "broke the decoder"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, log.String())
		}
	})
}

// A will passes by the ACL.
func TestTrap05(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		victim := b.device(rawConnect{id: "victim"})
		for _, o := range []rawConnect{
			{will: "nh/victim/down/update"},
			{will: "nh/victim/up/status"},
			{will: "nh/rogue/down/update"},
			{will: "nh/rogue/up/#"},
			{will: "nh/gateway"},
			{will: "$SYS/x"},
			{will: "nh/rogue/up/status", willRetain: true},
		} {
			o.id, o.willPayload = "rogue", "evil"
			if ack := b.socket().hello(o); ack[1] != 5 {
				t.Errorf("will on %s: CONNACK %x, want 5", o.will, ack)
			}
			o.v5 = true
			if ack := b.socket().hello(o); ack[1] != 0x87 || !bytes.Contains(ack, []byte("rogue")) {
				t.Errorf("will on %s: CONNACK %x, want 87 and a reason", o.will, ack)
			}
		}
		victim.silent(time.Second)
		for _, o := range []rawConnect{
			{id: "a", will: "nh/a/up/log", willPayload: "gone"},
			{id: "a", will: "nh/a/up/log", v5: true}, // an empty one is legal
			{id: "a", will: "nh/a/up/online", willRetain: true, willPayload: "0"},
		} {
			_ = b.connect(o).Close()
			synctest.Wait()
		}
		c := b.connect(rawConnect{id: "a", will: "nh/a/up/log", willPayload: "not said"})
		c.send([]byte{0xe0, 0})
		c.gone(time.Second)
		synctest.Wait()
		b.expect(t, "victim online v4 packet 0",
			"a online v4 packet 0", "a log=gone", "a offline",
			"a online v5 packet 0", "a log=", "a offline",
			"a online v4 packet 0", "a offline",
			"a online v4 packet 0", "a offline")
	})
}

// A device's own packet identifiers collide with those of what it is sent: a
// PUBLISH ended an unacknowledged delivery, a SUBSCRIBE was refused.
func TestTrap06(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		c := b.device(rawConnect{id: "d"})
		for i := range 20 {
			b.publish(mqtt.Message{Device: "d", Name: "cmd", Payload: fmt.Append(nil, i)})
		}
		var ids []uint16
		for range 16 {
			ids = append(ids, c.receive().id)
		}
		for _, id := range ids {
			c.publish("nh/d/up/progress", "5", 1, id, false)
			c.expect(0x40)
		}
		c.silent(time.Second) // its own PUBACKs have opened no window
		if code := c.subscribe("nh/gateway", 1); code != 1 {
			t.Fatalf("SUBACK %x", code)
		}
		for i, id := range ids {
			c.puback(id)
			if i < 4 {
				if p := c.receive(); p.payload != fmt.Sprint(16+i) {
					t.Fatal(p)
				}
			}
		}
	})
}

// A device that does not read blocks whoever publishes to it.
func TestTrap08a(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		b.device(rawConnect{id: "stalled"}) // and keepalive 0
		other := b.device(rawConnect{id: "other"})
		both := time.Now()
		for range 40 {
			b.publish(mqtt.Message{Device: "stalled", Name: "cmd", Payload: make([]byte, 60<<10)})
			b.publish(mqtt.Message{Device: "other", Name: "cmd"})
			other.take()
		}
		if took := time.Since(both); took > 0 { // a bubble's time passes only while all wait
			t.Fatalf("publishing waited %v", took)
		}
		b.wait(t, "stalled offline", 1)
		if took := time.Since(both); took > 6*time.Second {
			t.Fatalf("the stalled device lasted %v", took)
		}
	})
}

// QoS 1 messages are dropped when the device is slower than the publisher.
func TestTrap08b(t *testing.T) {
	const total = 4000
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		c := b.device(rawConnect{id: "slow"})
		room := make(chan struct{}, 1)
		go func() {
			for i := range total {
				for {
					err := b.Publish(mqtt.Message{Device: "slow", Name: "cmd", Payload: fmt.Append(nil, i)})
					if err == nil {
						break
					}
					if !errors.Is(err, mqtt.ErrQueueFull) {
						t.Error(err)
						return
					}
					<-room
				}
			}
		}()
		for i := range total {
			time.Sleep(time.Millisecond)
			if p := c.take(); p.payload != fmt.Sprint(i) || p.qos != 1 {
				t.Fatalf("message %d: %v", i, p)
			}
			select {
			case room <- struct{}{}:
			default:
			}
		}
		c.silent(time.Second)
	})
}

// A takeover waits for the stalled connection it ends.
func TestTrap09(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		b.device(rawConnect{id: "d"})
		for range 10 {
			b.publish(mqtt.Message{Device: "d", Name: "cmd", Payload: make([]byte, 60<<10)})
		}
		synctest.Wait() // its worker is inside a write
		began := time.Now()
		b.connect(rawConnect{id: "d"})
		if took := time.Since(began); took > time.Second {
			t.Fatalf("takeover took %v", took)
		}
		synctest.Wait()
		b.expect(t, "d online v4 packet 0", "d online v4 packet 0")
	})
}

// 1.5 times the keepalive overflows 16 bits from 43691 s on.
func TestTrap10(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		for _, keepalive := range []uint16{43690, 43691, 43692, 65535} {
			c := b.connect(rawConnect{id: "v3", keepalive: keepalive})
			time.Sleep(time.Minute)
			c.alive()
		}
		for asked, told := range map[uint16]uint16{0: 600, 1: 10, 60: 0, 601: 600, 43691: 600, 65535: 600} {
			c := b.socket()
			ack := c.hello(rawConnect{id: "v5", v5: true, keepalive: asked})
			var got uint16
			if i := bytes.IndexByte(ack, 19); i > 0 { // Server Keep Alive
				got = binary.BigEndian.Uint16(ack[i+1:])
			}
			if got != told {
				t.Errorf("keepalive %d: server keepalive %d, want %d (CONNACK %x)", asked, got, told, ack)
			}
			time.Sleep(14 * time.Second)
			c.alive()
			_ = c.Close()
		}
		silent, idle := b.connect(rawConnect{id: "silent", keepalive: 60}), b.connect(rawConnect{id: "idle"})
		silent.gone(91 * time.Second)
		time.Sleep(50 * time.Minute)
		idle.alive()
		idle.gone(61 * time.Minute)
	})
}

// The subscriptions of an expired session outlive it.
func TestTrap11(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		expiry := []byte{17, 0, 0, 0, 1}
		c := b.socket()
		ack := c.hello(rawConnect{id: "ghost", v5: true, persistent: true, props: expiry})
		if !bytes.Contains(ack, []byte{17, 0, 0, 0, 0}) {
			t.Errorf("CONNACK %x does not say that the session expires at once", ack)
		}
		c.subscribe("nh/ghost/down/#", 1)
		_ = c.Close()
		time.Sleep(4 * time.Second)
		again := b.connect(rawConnect{id: "ghost", v5: true, persistent: true, props: expiry})
		b.publish(mqtt.Message{Device: "ghost", Name: "reboot"})
		again.silent(time.Second)
	})
}

// brokenListener fails as long as it has errors left.
type brokenListener struct {
	*memnet.Listener
	errs chan error
}

func (l brokenListener) Accept() (net.Conn, error) {
	select {
	case err := <-l.errs:
		return nil, err
	default:
		return l.Listener.Accept()
	}
}

// The first error of Accept ends the broker.
func TestTrap13(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := brokenListener{memnet.Listen(), make(chan error, 20)}
		for range cap(l.errs) {
			l.errs <- errors.New("accept: too many open files")
		}
		b := runBroker(t, mqtt.EmbeddedConfig{Listener: l}, newWitness(), func() (net.Conn, error) { return l.Dial(t.Context(), "", "") })
		time.Sleep(time.Second)
		if err := b.Health().Err; err == nil || !strings.Contains(err.Error(), "too many open files") {
			t.Fatalf("health while Accept fails: %v", err)
		}
		time.Sleep(20 * time.Second)
		b.connect(rawConnect{id: "d"})
		if err := b.Health().Err; err != nil {
			t.Fatal(err)
		}
	})
}

// Any error of OnPublish but one is acknowledged to the device.
func TestTrap14(t *testing.T) {
	for _, v5 := range []bool{false, true} {
		for _, qos := range []byte{1, 2} {
			onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
				b.received = func(string, string, []byte) error { return errors.New("disk full") }
				c := b.connect(rawConnect{id: "d", v5: v5})
				c.publish("nh/d/up/status", "completed", qos, 7, false)
				c.publish("nh/d/up/status", "unheard", qos, 8, false)
				for {
					h, body, err := c.packet(time.Second)
					if err != nil {
						if ne, ok := err.(net.Error); ok && ne.Timeout() {
							t.Fatal("the connection lives on")
						}
						break
					}
					if h&0xf0 != 0xe0 {
						t.Fatalf("v5 %v qos %d: answered with %x %x", v5, qos, h, body)
					}
				}
				synctest.Wait()
				version := map[bool]int{false: 4, true: 5}[v5]
				b.expect(t, fmt.Sprintf("d online v%d packet 0", version), "d status=completed", "d offline")
			})
		}
	}
}

// PUBACK precedes the handler.
func TestTrap15(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		release := make(chan struct{})
		b.received = func(string, string, []byte) error { <-release; return nil }
		c := b.connect(rawConnect{id: "d"})
		for id, qos := range map[uint16]byte{7: 1, 8: 2} {
			c.publish("nh/d/up/status", "completed", qos, id, false)
			c.silent(time.Second)
			release <- struct{}{}
			c.expect(0x30 + qos<<4) // PUBACK, PUBREC
		}
	})
}

// A lockedBuffer may be written to by several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// Whole packets are logged.
func TestTrap16(t *testing.T) {
	var log lockedBuffer
	onMemory(t, mqtt.EmbeddedConfig{Log: slog.New(slog.NewTextHandler(&log, nil))}, func(t *testing.T, b *broker) {
		secret := rawConnect{id: "d", user: "hushhush", will: "hushhush", willPayload: "hushhush"}
		c := b.connect(rawConnect{id: "d"})
		c.send(secret.packet()) // a second CONNECT
		c.gone(time.Second)
		if s := log.String(); !strings.Contains(s, "error processing packet") {
			t.Fatalf("the broken packet was not logged at all:\n%s", s)
		}
		for range 1000 {
			c := b.connect(rawConnect{id: "d", v5: true})
			c.send(rawFrame(0x30, append(mqttString("nh/d/up/+"), "\x00hushhush"...)))
			c.gone(time.Second)
		}
		if s := log.String(); strings.Contains(s, "hushhush") {
			t.Fatalf("a packet was logged:\n%s", s)
		} else if n := strings.Count(s, "\n"); n > 50 {
			t.Fatalf("%d lines", n)
		}
	})
}

// Retained messages vanish after a day.
func TestTrap17(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		b.publish(mqtt.Message{Device: "d", Name: "update", Payload: []byte("v2"), Retain: true})
		time.Sleep(25 * time.Hour)
		c := b.device(rawConnect{id: "d"})
		if p := c.take(); p.String() != "nh/d/down/update=v2 qos 1 retain true" {
			t.Fatal(p)
		}
	})
}

// Messages beyond the client's receive maximum are never sent.
func TestTrap18(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		c := b.device(rawConnect{id: "d", v5: true, props: []byte{33, 0, 2}})
		for i := range 60 {
			b.publish(mqtt.Message{Device: "d", Name: "cmd", Payload: fmt.Append(nil, i)})
		}
		for i := 0; i < 60; i += 2 {
			first, second := c.receive(), c.receive()
			if first.payload != fmt.Sprint(i) || second.payload != fmt.Sprint(i+1) {
				t.Fatal(first, second)
			}
			c.silent(10 * time.Millisecond)
			c.puback(second.id)
			c.puback(first.id)
		}
	})
}

// Shared and wildcard subscriptions are granted, whatever CONNACK declares.
func TestTrap21(t *testing.T) {
	filters := []string{
		"$share/g/#", "$share/g/nh/d/down/#", "$SHARE/g/nh/d/down/#", "$queue/nh/d/down/#", "$SYS/#", "#", "+", "nh/#", "nh/+",
		"nh/+/down/#", "nh/other/down/#", "nh/other/down/update", "nh/d/up/#", "nh/d/#", "nh/d/+/update", "nh/d/down", "nh/d/down/",
		"nh/gateway/#", "nh/gateway/x", "nh/d/../other/down/#", "NH/d/down/#", "/nh/d/down/#", "nh//down/#",
	}
	for _, v5 := range []bool{false, true} {
		onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
			c, refused := b.connect(rawConnect{id: "d", v5: v5}), byte(0x80)
			if v5 {
				refused = 0x87
			}
			for _, f := range filters {
				if code := c.subscribe(f, 1); code != refused {
					t.Errorf("v5 %v: %s: %x, want %x", v5, f, code, refused)
				}
			}
			other := b.device(rawConnect{id: "other"})
			b.publish(mqtt.Message{Device: "other", Name: "update", Payload: []byte("url"), Retain: true})
			b.publish(mqtt.Message{Name: "gateway", Payload: []byte("online"), Retain: true})
			other.take()
			c.silent(time.Second)
			if n := b.Health().Dropped["acl"]; n != uint64(len(filters)) {
				t.Errorf("%d refusals counted, want %d", n, len(filters))
			}
		})
	}
}

// Filters that are none are granted.
func TestTrap22(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		c := b.connect(rawConnect{id: "d"})
		for _, f := range []string{"nh/d/down/a#", "nh/d/down/a+/b", "nh/d/down/+a", "nh/d/down/#/a", "nh/d/down/++", "nh/d/down/a/##"} {
			if code := c.subscribe(f, 1); code != 0x80 {
				t.Errorf("%s: %x", f, code)
			}
		}
		for _, f := range []string{"nh/d/down/#", "nh/d/down/+", "nh/d/down/update", "nh/d/down/console/+", "nh/d/down/+/size", "nh/gateway"} {
			if code := c.subscribe(f, 1); code != 1 {
				t.Errorf("%s: %x", f, code)
			}
		}
	})
}

// Sessions are kept for ever.
func TestTrap23(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		expiry := binary.BigEndian.AppendUint32([]byte{17}, math.MaxUint32)
		for i := range 200 {
			c := b.device(rawConnect{id: fmt.Sprint("d", i), persistent: true, v5: i%2 == 0, props: expiry})
			_ = c.Close()
		}
		synctest.Wait()
		if n := b.Remembered(); n != 0 {
			t.Fatalf("%d sessions kept", n)
		}
	})
}

// The ACL is asked about an alias instead of its topic.
func TestTrap24(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		for _, topic := range []string{"nh/d/up/status", ""} {
			c := b.connect(rawConnect{id: "d", v5: true})
			c.send(rawFrame(0x30, append(mqttString(topic), 3, 35, 0, 1, 'x')))
			if body := c.expect(0xe0); body[0] != 0x94 { // Topic Alias invalid
				t.Errorf("DISCONNECT %x", body)
			}
			c.gone(time.Second)
			synctest.Wait()
		}
		b.expect(t, "d online v5 packet 0", "d offline", "d online v5 packet 0", "d offline")
	})
}

// mochi takes one hook's yes for all of them.
func TestOneHook(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		if n := b.Hooks(); n != 1 {
			t.Fatalf("%d hooks", n)
		}
	})
}
