package mqtt_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/mqtt"
)

func TestPublishRefused(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		c := b.connect(rawConnect{id: "small", v5: true, props: []byte{39, 0, 0, 0, 64}}) // Maximum Packet Size 64
		b.connect(rawConnect{id: "full"})
		for range 64 {
			b.publish(mqtt.Message{Device: "full", Name: "cmd"})
		}
		for i := range 64 {
			b.publish(mqtt.Message{Device: "full", Name: fmt.Sprint("state", i), Retain: true, Payload: []byte("x")})
		}
		for _, one := range []struct {
			m    mqtt.Message
			want error
		}{
			{mqtt.Message{Device: "away", Name: "reboot"}, mqtt.ErrAbsent},
			{mqtt.Message{Device: "away", Name: "link", Retain: true, Payload: []byte("up")}, nil},
			{mqtt.Message{Device: "full", Name: "cmd"}, mqtt.ErrQueueFull},
			{mqtt.Message{Device: "full", Name: "state64", Retain: true, Payload: []byte("x")}, mqtt.ErrQueueFull},
			{mqtt.Message{Device: "full", Name: "state63", Retain: true, Payload: []byte("y")}, nil},
			{mqtt.Message{Device: "small", Name: "cmd", Payload: make([]byte, 64)}, mqtt.ErrTooLarge},
			{mqtt.Message{Device: "small", Name: "cmd", Expires: time.Now()}, mqtt.ErrExpired},
			{mqtt.Message{Device: "gateway", Name: "cmd"}, mqtt.ErrTopic},
			{mqtt.Message{Device: "a/b", Name: "cmd"}, mqtt.ErrTopic},
			{mqtt.Message{Device: "+", Name: "cmd"}, mqtt.ErrTopic},
			{mqtt.Message{Device: "small", Name: "#"}, mqtt.ErrTopic},
			{mqtt.Message{Device: "small"}, mqtt.ErrTopic},
			{mqtt.Message{}, mqtt.ErrTopic},
		} {
			if err := b.Publish(one.m); !errors.Is(err, one.want) {
				t.Errorf("%s to %s: %v, want %v", one.m.Name, one.m.Device, err, one.want)
			}
		}
		want := map[string]uint64{"absent": 1, "queue_full": 2, "too_large": 1, "expired": 1}
		if got := b.Health().Dropped; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("dropped %v, want %v", got, want)
		}
		// The largest that fits, to the byte, and retained before the limit was known.
		c.subscribe("nh/small/down/#", 1)
		topic := len("nh/small/down/cmd")
		b.publish(mqtt.Message{Device: "small", Name: "cmd", Payload: make([]byte, 64-2-2-topic-2-1)})
		c.take()
		_ = c.Close()
		synctest.Wait()
		b.publish(mqtt.Message{Device: "small", Name: "update", Retain: true, Payload: make([]byte, 64)})
		b.publish(mqtt.Message{Device: "small", Name: "link", Retain: true, Payload: []byte("up")})
		c = b.connect(rawConnect{id: "small", v5: true, props: []byte{39, 0, 0, 0, 64}})
		c.subscribe("nh/small/down/#", 1)
		if p := c.take(); p.payload != "up" {
			t.Fatal(p)
		}
		c.silent(time.Second)
		if n := b.Health().Dropped["too_large"]; n != 2 {
			t.Errorf("%d too large", n)
		}
	})
}

// SUBACK first, then what is retained, then what waited.
func TestSubscribeOrder(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		b.publish(mqtt.Message{Device: "d", Name: "update", Payload: []byte("old"), Retain: true})
		b.publish(mqtt.Message{Device: "d", Name: "update", Payload: []byte("v2"), Retain: true})
		b.publish(mqtt.Message{Device: "d", Name: "archive", Payload: []byte("a"), Retain: true})
		b.publish(mqtt.Message{Device: "d", Name: "archive", Retain: true}) // cleared
		b.publish(mqtt.Message{Name: "gateway", Payload: []byte("online"), Retain: true})
		c := b.connect(rawConnect{id: "d"})
		b.publish(mqtt.Message{Device: "d", Name: "reboot", Payload: []byte("1")})
		b.publish(mqtt.Message{Device: "d", Name: "identify", Payload: []byte("2"), Expires: time.Now().Add(time.Second)})
		b.publish(mqtt.Message{Device: "d", Name: "identify", Payload: []byte("3"), Expires: time.Now().Add(time.Minute)})
		c.silent(2 * time.Second)
		if code := c.subscribe("nh/d/down/#", 2); code != 2 { // granted as asked for; the broker sends QoS 1
			t.Fatalf("SUBACK %x", code)
		}
		c.subscribeExpect(t, "nh/d/down/reboot=1 qos 1 retain false", "nh/d/down/identify=3 qos 1 retain false", "nh/d/down/update=v2 qos 1 retain true")
		c.subscribe("nh/gateway", 0)
		c.subscribeExpect(t, "nh/gateway=online qos 0 retain true")
		if code := c.subscribe("nh/d/down/#", 0); code != 0 { // again: retained again
			t.Fatalf("SUBACK %x", code)
		}
		c.subscribeExpect(t, "nh/d/down/update=v2 qos 0 retain true")
		if n := b.Health().Dropped["expired"]; n != 1 {
			t.Errorf("%d expired", n)
		}
	})
}

func (c *rawClient) subscribeExpect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		if p := c.take(); p.String() != w {
			t.Fatalf("got %v, want %s", p, w)
		}
	}
	c.silent(time.Second)
}

// The newest state wins, in the place of the older, however slow the device is.
func TestStateCoalesces(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		c := b.device(rawConnect{id: "d", v5: true, props: []byte{33, 0, 1}}) // Receive Maximum 1
		b.publish(mqtt.Message{Device: "d", Name: "first"})
		p := c.receive()
		for i := range 1000 {
			b.publish(mqtt.Message{Device: "d", Name: "link", Payload: fmt.Append(nil, i), Retain: true})
			if i == 500 {
				b.publish(mqtt.Message{Device: "d", Name: "last"})
			}
		}
		c.puback(p.id)
		c.subscribeExpect(t, "nh/d/down/link=999 qos 1 retain false", "nh/d/down/last= qos 1 retain false")
		b.publish(mqtt.Message{Device: "d", Name: "link", Retain: true}) // cleared: the device hears of it
		c.subscribeExpect(t, "nh/d/down/link= qos 1 retain false")
	})
}

// MQTT 5: message expiry, subscription identifier, and the options of a
// subscription.
func TestPublishProperties(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		b.publish(mqtt.Message{Device: "d", Name: "update", Payload: []byte("v"), Retain: true})
		c := b.connect(rawConnect{id: "d", v5: true})
		if code := c.subscribe("nh/d/down/#", 0x21); code != 1 { // Retain Handling 2: nothing retained
			t.Fatalf("SUBACK %x", code)
		}
		c.silent(time.Second)
		c.subscribe("nh/d/down/#", 0x11) // Retain Handling 1: not a new one
		c.silent(time.Second)
		c.subscribe("nh/d/down/update", 0x19) // a new one, and Retain As Published
		c.subscribeExpect(t, "nh/d/down/update=v qos 1 retain true")
		b.publish(mqtt.Message{Device: "d", Name: "update", Payload: []byte("w"), Retain: true})
		c.subscribeExpect(t, "nh/d/down/update=w qos 1 retain true")

		c.send(rawFrame(0x82, append(append([]byte{0, 9, 2, 11, 5}, mqttString("nh/d/down/#")...), 1))) // identifier 5
		c.expect(0x90)
		c.take() // retained again
		b.publish(mqtt.Message{Device: "d", Name: "reboot", Expires: time.Now().Add(60 * time.Second)})
		p := c.take()
		if len(p.props) != 7 || p.props[0] != 2 || binary.BigEndian.Uint32(p.props[1:]) != 60 || p.props[5] != 11 || p.props[6] != 5 {
			t.Errorf("properties %x", p.props)
		}
		c.send(rawFrame(0xa2, append([]byte{0, 9, 0}, mqttString("nh/d/down/#")...)))
		c.expect(0xb0)
		b.publish(mqtt.Message{Device: "d", Name: "reboot"})
		b.publish(mqtt.Message{Device: "d", Name: "update", Payload: []byte("x"), Retain: true})
		c.subscribeExpect(t, "nh/d/down/update=x qos 1 retain true")
	})
}

// One subscriber that does not read keeps nothing from the others.
func TestGatewayMessageReachesAll(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		b.device(rawConnect{id: "stalled"}).subscribe("nh/gateway", 1)
		var rest []*rawClient
		for i := range 20 {
			c := b.device(rawConnect{id: fmt.Sprint("d", i)})
			c.subscribe("nh/gateway", 1)
			rest = append(rest, c)
		}
		for range 10 {
			b.publish(mqtt.Message{Device: "stalled", Name: "cmd", Payload: make([]byte, 60<<10)})
		}
		synctest.Wait()
		began := time.Now()
		b.publish(mqtt.Message{Name: "gateway", Payload: []byte("offline"), Retain: true})
		for _, c := range rest {
			if p := c.take(); p.String() != "nh/gateway=offline qos 1 retain false" {
				t.Fatal(p)
			}
		}
		if took := time.Since(began); took > 0 {
			t.Fatalf("took %v", took)
		}
	})
}

// What a device that leaves did not get is counted, and the newest of what may
// still be delivered waits for it.
func TestAbsentIsCounted(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		c := b.device(rawConnect{id: "d"})
		for i := range 20 {
			b.publish(mqtt.Message{Device: "d", Name: "cmd", Payload: fmt.Append(nil, i), Expires: time.Now().Add(time.Hour)})
			b.publish(mqtt.Message{Device: "d", Name: "old", Payload: fmt.Append(nil, i), Expires: time.Now().Add(time.Minute)})
			b.publish(mqtt.Message{Device: "d", Name: "now", Payload: fmt.Append(nil, i)})
		}
		b.publish(mqtt.Message{Device: "d", Name: "link", Payload: []byte("up"), Retain: true})
		_ = c.Close()
		b.wait(t, "d offline", 1)
		if got, want := fmt.Sprint(b.Health().Dropped), "map[absent:58]"; got != want {
			t.Errorf("dropped %s, want %s", got, want)
		}
		time.Sleep(30 * time.Minute)
		c = b.device(rawConnect{id: "d"})
		c.subscribeExpect(t, "nh/d/down/cmd=19 qos 1 retain false", "nh/d/down/link=up qos 1 retain true")
		if got, want := fmt.Sprint(b.Health().Dropped), "map[absent:58 expired:1]"; got != want {
			t.Errorf("dropped %s, want %s", got, want)
		}
	})
}

// Whoever may connect cannot leave a mailbox behind for every name it makes up.
func TestAbsentAreBounded(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{MaxDevices: 4}, func(t *testing.T, b *broker) {
		for i := range 100 {
			b.publish(mqtt.Message{Device: fmt.Sprintf("d%d", i), Name: "link", Payload: []byte("down"), Retain: true})
		}
		if n := b.Health().Dropped["forgotten"]; n != 100-2*4 {
			t.Errorf("%d forgotten, want %d", n, 100-2*4)
		}
	})
}

func TestSubscriptionsAreBounded(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		c := b.connect(rawConnect{id: "d"})
		for i := range 40 {
			want := byte(1)
			if i >= 32 {
				want = 0x80
			}
			if code := c.subscribe(fmt.Sprint("nh/d/down/", i), 1); code != want {
				t.Errorf("subscription %d: %x, want %x", i, code, want)
			}
		}
		if code := c.subscribe("nh/d/down/0", 1); code != 1 {
			t.Errorf("the first again: %x", code)
		}
	})
}

// MQTT 5 is told why a subscription was refused, if its packets may be so long.
func TestRefusedSubscriptionSaysWhy(t *testing.T) {
	onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
		c := b.connect(rawConnect{id: "d", v5: true})
		for i := range 32 {
			c.subscribe(fmt.Sprint("nh/d/down/", i), 1)
		}
		for _, tt := range []struct {
			filter string
			code   byte
			reason string
		}{
			{"nh/d/down/0", 1, ""},
			{"#", 0x87, "only nh/d/down/... and nh/gateway can be subscribed to, and not shared"},
			{"$share/g/nh/d/down/#", 0x87, "only nh/d/down/..."},
			{"nh/other/down/#", 0x87, "only nh/d/down/..."},
			{"nh/d/down/#/a", 0x8f, "topic filter invalid"},
			{"nh/d/down/32", 0x97, "a device may have 32 subscriptions"},
		} {
			c.send(rawFrame(0x82, append(append([]byte{0, 1, 0}, mqttString(tt.filter)...), 1)))
			ack := c.expect(0x90)
			if ack[len(ack)-1] != tt.code || tt.reason == "" != (ack[2] == 0) || !bytes.Contains(ack, []byte(tt.reason)) {
				t.Errorf("%s: %x %q, want %x with %q", tt.filter, ack, ack, tt.code, tt.reason)
			}
		}
		small := b.connect(rawConnect{id: "s", v5: true, props: []byte{39, 0, 0, 0, 40}}) // Maximum Packet Size
		small.send(rawFrame(0x82, append(append([]byte{0, 1, 0}, mqttString("#")...), 1)))
		if ack := small.expect(0x90); !bytes.Equal(ack, []byte{0, 1, 0, 0x87}) {
			t.Errorf("SUBACK %x of at most 40 bytes", ack)
		}
		quiet := b.connect(rawConnect{id: "q", v5: true, props: []byte{23, 0}}) // Request Problem Information
		quiet.send(rawFrame(0x82, append(append([]byte{0, 1, 0}, mqttString("#")...), 1)))
		if ack := quiet.expect(0x90); !bytes.Equal(ack, []byte{0, 1, 0, 0x87}) {
			t.Errorf("SUBACK %x without a reason", ack)
		}
	})
}

func TestNewEmbeddedRefusesPrefix(t *testing.T) {
	for _, p := range []string{"", "+", "a/#", "$SYS", "a\x00b", strings.Repeat("x", 70000)} {
		l, err := mqtt.NewEmbedded(mqtt.EmbeddedConfig{Topics: mqtt.Topics{Prefix: p}, Listener: brokenListener{}})
		if err == nil || l != nil {
			t.Errorf("prefix %.20q accepted", p)
		}
	}
	if _, err := mqtt.NewEmbedded(mqtt.EmbeddedConfig{Topics: prefix}); err == nil {
		t.Error("no listener accepted")
	}
}
