package mqtt_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/mqtt"
)

// The traps of mochi v2.7.9 that are about messages.

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
