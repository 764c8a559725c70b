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
		if n := strings.Count(log.String(), "a packet was too much"); n != 1 {
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

// The same over TCP, where the stalled device still speaks, so that the
// goroutine that reads from it waits to answer.
func TestTrap09TCP(t *testing.T) {
	b := onLoopback(t, mqtt.EmbeddedConfig{}, newWitness())
	stalled := b.device(rawConnect{id: "d"})
	for b.Publish(mqtt.Message{Device: "d", Name: "fw", Payload: make([]byte, 1<<20)}) == nil {
		// until its socket and its queue are full
	}
	for range 10 {
		stalled.send([]byte{0xc0, 0})
	}
	began := time.Now()
	b.connect(rawConnect{id: "d"})
	if took := time.Since(began); took > 2500*time.Millisecond { // half a second is due
		t.Fatalf("takeover took %v", took)
	}
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

// mochi takes one hook's yes for all of them.
func TestOneHook(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		if n := b.Hooks(); n != 1 {
			t.Fatalf("%d hooks", n)
		}
	})
}
