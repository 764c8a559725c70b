package mqtt_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/internal/memnet"
	"ganglion/mqtt"
)

// world is a Bus that runs in a bubble, and the way devices reach the broker.
type world struct {
	*gateway
	*recorder
	t       *testing.T
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	foreign *site // the broker of an External
}

// buses are the two implementations under test.
var buses = []struct {
	name  string
	start func(t *testing.T) *world
}{
	{"embedded", func(t *testing.T) *world {
		l := memnet.Listen()
		e, err := mqtt.NewEmbedded(mqtt.EmbeddedConfig{Topics: prefix, Listener: l, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		r := new(recorder)
		return &world{gateway: run(t, e, r), recorder: r, t: t, dial: l.Dial}
	}},
	{"external", func(t *testing.T) *world {
		s, r := newSite(t), new(recorder)
		return &world{gateway: run(t, external(t, s.config()), r), recorder: r, t: t, dial: s.Dial, foreign: s}
	}},
}

// conformance is what every Bus does. differs names what a foreign broker
// makes different, and why.
var conformance = []struct {
	name, differs string
	run           func(t *testing.T, w *world)
}{
	{name: "hello arrives in order", run: testInOrder},
	{name: "acknowledged when accepted", run: testAcknowledged,
		differs: "a foreign broker acknowledges to the device itself; what waits for Received is the gateway's PUBACK to the broker"},
	{name: "an error brings it again", run: testDeclined,
		differs: "a foreign broker has taken the message over from the device, and delivers it again itself"},
	{name: "publish reaches the device", run: testDown},
	{name: "state waits for the subscriber", run: testState},
	{name: "a thousand in order", run: testThousand},
	{name: "a hundred devices in order", run: testHundred},
	{name: "presence", run: testPresence},
	{name: "takeover", run: testTakeover,
		differs: "a foreign broker publishes the will of the connection taken over (MQTT 3.1.1 §3.1.2-8): Offline comes before Online"},
	{name: "payloads", run: testPayloads},
	{name: "invalid identifiers", run: testInvalidIDs,
		differs: "a foreign broker lets in whom it likes; what such a client publishes is counted and dropped"},
	{name: "retained by a device", run: testRetained,
		differs: "a foreign broker shows the retain flag to new subscriptions only (MQTT 3.1.1 §3.3.1-9): it is a live message first"},
	{name: "an absent device", run: testAbsent},
	{name: "expiry", run: testExpiry},
	{name: "the end", run: testEnd},
}

func TestConformance(t *testing.T) {
	for _, b := range buses {
		for _, c := range conformance {
			t.Run(b.name+"/"+c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { // fails by itself if a goroutine is left
					w := b.start(t)
					w.up(t)
					c.run(t, w)
					w.stop(t)
					if w.foreign != nil {
						w.foreign.stop()
					}
				})
			})
		}
	}
}

// plain is a connection that says nothing yet.
func (w *world) plain() *rawClient {
	w.t.Helper()
	conn, err := w.dial(context.Background(), "tcp", "")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return newRawClient(w.t, conn)
}

// device is the same firmware on either broker: a will, one subscription, and
// its presence.
func (w *world) device(id string) *rawClient {
	w.t.Helper()
	c := w.plain()
	if ack := c.hello(rawConnect{id: id, will: "nh/" + id + "/up/online", willPayload: "0", willRetain: true}); ack[1] != 0 {
		w.t.Fatalf("CONNACK %x", ack)
	}
	if code := c.subscribe("nh/"+id+"/down/#", 1); code != 1 {
		w.t.Fatalf("SUBACK %x", code)
	}
	c.publish("nh/"+id+"/up/online", "1", 1, 1, true)
	c.expect(0x40)
	synctest.Wait()
	return c
}

// bye leaves in order: no will is published, so the device says it is away.
func bye(c *rawClient, id string) {
	c.t.Helper()
	c.publish("nh/"+id+"/up/online", "0", 1, 9, true)
	c.expect(0x40)
	c.send([]byte{0xe0, 0})
	c.gone(time.Second)
	synctest.Wait()
}

func (w *world) must(m mqtt.Message) {
	w.t.Helper()
	if err := w.Publish(m); err != nil {
		w.t.Errorf("publish %s to %q: %v", m.Name, m.Device, err)
	}
}

// heard is what the Handler was told about name.
func (w *world) heard(name string) (got []string) {
	synctest.Wait()
	for _, line := range w.all() {
		if strings.Contains(line, " "+name+" ") {
			got = append(got, line)
		}
	}
	return got
}

func testInOrder(t *testing.T, w *world) {
	c := w.device("d1")
	for i, name := range []string{"hello", "status", "progress"} {
		c.publish("nh/d1/up/"+name, fmt.Sprint("payload ", i), 1, uint16(i+2), false)
		c.expect(0x40)
	}
	c.publish("nh/d1/up/console/size", "level", 0, 0, false)
	w.want(t, "online d1", "received d1 hello payload 0", "received d1 status payload 1", "received d1 progress payload 2", "received d1 console/size level")
}

func testAcknowledged(t *testing.T, w *world) {
	c := w.device("d1")
	release := make(chan struct{})
	w.recorder.mu.Lock()
	w.refuse = func(string, string, []byte) error { <-release; return nil }
	w.recorder.mu.Unlock()
	c.publish("nh/d1/up/status", "s", 1, 7, false)
	synctest.Wait()
	if w.foreign == nil {
		c.silent(time.Second)
		close(release)
		c.expect(0x40)
		return
	}
	c.expect(0x40)
	cl, _ := w.foreign.broker().Clients.Get("ganglion-site7")
	if n := cl.State.Inflight.Len(); n != 1 {
		t.Errorf("%d messages unacknowledged while Received runs, want 1", n)
	}
	close(release)
	synctest.Wait()
	if n := cl.State.Inflight.Len(); n != 0 {
		t.Errorf("%d messages unacknowledged after Received, want 0", n)
	}
}

func testDeclined(t *testing.T, w *world) {
	c := w.device("d1")
	declined := false
	w.recorder.mu.Lock()
	w.refuse = func(_, _ string, payload []byte) error {
		if string(payload) == "2" && !declined {
			declined = true
			return errors.New("not now")
		}
		return nil
	}
	w.recorder.mu.Unlock()
	c.publish("nh/d1/up/status", "1", 1, 2, false)
	c.expect(0x40)
	c.publish("nh/d1/up/status", "2", 1, 3, false)
	if w.foreign == nil {
		c.gone(time.Second)
		c = w.device("d1")
		c.publish("nh/d1/up/status", "2", 1, 3, false)
	}
	c.expect(0x40)
	within(t, 10*time.Second, "accepted", func() bool { return slices.Contains(w.all(), "received d1 status 2") })
	c.publish("nh/d1/up/status", "3", 1, 4, false)
	c.expect(0x40)
	want := []string{"received d1 status 1", "declined d1 status 2", "received d1 status 2", "received d1 status 3"}
	if got := w.heard("status"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func testDown(t *testing.T, w *world) {
	c := w.device("d1")
	w.must(mqtt.Message{Device: "d1", Name: "reboot", Payload: []byte(`{"ref":1}`), Expires: time.Now().Add(time.Minute)})
	w.must(mqtt.Message{Device: "d1", Name: "link", Payload: []byte("up"), Retain: true})
	w.must(mqtt.Message{Device: "d1", Name: "fw", Payload: []byte("chunk")})
	for _, want := range []string{
		`nh/d1/down/reboot={"ref":1} qos 1 retain false`, "nh/d1/down/link=up qos 1 retain false", "nh/d1/down/fw=chunk qos 0 retain false",
	} {
		if got := c.take().String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	c.silent(time.Second)
}

func testState(t *testing.T, w *world) {
	w.must(mqtt.Message{Device: "d1", Name: "link", Payload: []byte("old"), Retain: true})
	w.must(mqtt.Message{Device: "d1", Name: "link", Payload: []byte("up"), Retain: true})
	w.must(mqtt.Message{Name: "gateway", Payload: []byte("online"), Retain: true})
	synctest.Wait()
	late := func(filter string) *rawClient {
		c := w.plain()
		c.hello(rawConnect{id: "d1"})
		c.subscribe(filter, 1)
		return c
	}
	c := late("nh/d1/down/#")
	if got := c.take().String(); got != "nh/d1/down/link=up qos 1 retain true" {
		t.Error(got)
	}
	c.subscribe("nh/gateway", 1)
	if got := c.take().String(); got != "nh/gateway=online qos 1 retain true" {
		t.Error(got)
	}
	c.Close()
	synctest.Wait()
	w.must(mqtt.Message{Device: "d1", Name: "link", Retain: true})
	synctest.Wait()
	late("nh/d1/down/#").silent(time.Second)
}

// say publishes n numbered messages, each after the one before is acknowledged.
func say(c *rawClient, id string, n int) {
	c.t.Helper()
	for i := range n {
		c.publish("nh/"+id+"/up/log", fmt.Sprint(i), 1, uint16(i+2), false)
		if ack := c.expect(0x40); binary.BigEndian.Uint16(ack) != uint16(i+2) {
			c.t.Errorf("PUBACK %x for the message %d", ack, i)
		}
	}
}

func (w *world) said(id string, n int) {
	w.t.Helper()
	got := w.heard(id + " log")
	if len(got) != n {
		w.t.Errorf("%s: %d of %d messages", id, len(got), n)
	}
	for i, line := range got {
		if want := fmt.Sprintf("received %s log %d", id, i); line != want {
			w.t.Fatalf("%q, want %q", line, want)
		}
	}
}

func testThousand(t *testing.T, w *world) {
	c := w.device("d1")
	for i := range 1000 {
		c.publish("nh/d1/up/log", fmt.Sprint(i), 1, uint16(i+2), false)
	}
	for range 1000 {
		c.expect(0x40)
	}
	w.said("d1", 1000)
}

func testHundred(t *testing.T, w *world) {
	var wg sync.WaitGroup
	for i := range 100 {
		id := fmt.Sprint("d", i, "-")
		c := w.device(id)
		wg.Go(func() { say(c, id, 20) })
	}
	if n := w.Health().Devices; n != 100 {
		t.Errorf("%d devices", n)
	}
	wg.Wait()
	for i := range 100 {
		w.said(fmt.Sprint("d", i, "-"), 20)
	}
}

func testPresence(t *testing.T, w *world) {
	bye(w.device("d1"), "d1")
	w.device("d2").Close() // cut
	synctest.Wait()
	w.device("d1")
	w.want(t, "online d1", "offline d1", "online d2", "offline d2", "online d1")
	if n := w.Health().Devices; n != 1 {
		t.Errorf("%d devices, want 1", n)
	}
}

func testTakeover(t *testing.T, w *world) {
	old := w.device("d1")
	c := w.plain()
	if ack := c.hello(rawConnect{id: "d1", will: "nh/d1/up/online", willPayload: "0", willRetain: true}); ack[1] != 0 {
		t.Fatalf("CONNACK %x", ack)
	}
	old.gone(time.Second)
	synctest.Wait()
	c.publish("nh/d1/up/online", "1", 1, 1, true)
	c.expect(0x40)
	want := []string{"online d1", "online d1"}
	if w.foreign != nil {
		want = []string{"online d1", "offline d1", "online d1"}
	}
	w.want(t, want...)
	if n := w.Health().Devices; n != 1 {
		t.Errorf("%d devices, want 1", n)
	}
}

func testPayloads(t *testing.T, w *world) {
	c := w.device("d1")
	binaries := make([]byte, 256)
	for i := range binaries {
		binaries[i] = byte(i)
	}
	for i, payload := range [][]byte{{}, binaries, bytes.Repeat([]byte{0xff}, 64<<10-64)} {
		c.publish("nh/d1/up/shell", string(payload), 1, uint16(i+2), false)
		c.expect(0x40)
		if got, want := w.heard("shell"), fmt.Sprintf("received d1 shell %s", payload); len(got) != i+1 || got[i] != want {
			t.Errorf("%d bytes up did not arrive as they were", len(payload))
		}
		w.must(mqtt.Message{Device: "d1", Name: "shell", Payload: payload})
		if got := c.take(); got.payload != string(payload) {
			t.Errorf("%d bytes down, want %d", len(got.payload), len(payload))
		}
	}
}

func testInvalidIDs(t *testing.T, w *world) {
	ids := []string{"gateway", "-d", "a b", "d+", strings.Repeat("d", 65), "\u00e5"}
	for _, id := range ids {
		c := w.plain()
		ack := c.hello(rawConnect{id: id})
		if w.foreign == nil {
			if ack[1] != 2 { // identifier rejected (MQTT 3.1.1 §3.2.2.3)
				t.Errorf("%q: CONNACK %x", id, ack)
			}
			c.gone(time.Second)
			continue
		}
		c.publish("nh/"+strings.Trim(id, "+")+"\u00e5/up/hello", "x", 1, 1, false)
		c.expect(0x40)
	}
	w.want(t)
	if n := w.Health().Dropped["bad_topic"]; w.foreign != nil && n != uint64(len(ids)) {
		t.Errorf("%d counted, want %d", n, len(ids))
	}
	for _, id := range ids {
		if err := w.Publish(mqtt.Message{Device: id, Name: "link", Retain: true}); !errors.Is(err, mqtt.ErrTopic) {
			t.Errorf("publish to %q: %v", id, err)
		}
	}
}

func testRetained(t *testing.T, w *world) {
	c := w.device("d1")
	c.publish("nh/d1/up/status", "kept", 1, 2, true)
	c.expect(0x40)
	want := "refused d1 status: " + mqtt.ErrRetained.Error()
	if w.foreign != nil {
		want = "received d1 status kept"
	}
	w.want(t, "online d1", want)
}

func testAbsent(t *testing.T, w *world) {
	bye(w.device("d1"), "d1")
	for _, id := range []string{"d1", "d2"} {
		if err := w.Publish(mqtt.Message{Device: id, Name: "reboot"}); !errors.Is(err, mqtt.ErrAbsent) {
			t.Errorf("a command to %s: %v", id, err)
		}
		w.must(mqtt.Message{Device: id, Name: "link", Payload: []byte("up"), Retain: true})
	}
	synctest.Wait()
	if n := w.Health().Dropped["absent"]; n != 2 {
		t.Errorf("%d counted as absent, want 2", n)
	}
}

func testExpiry(t *testing.T, w *world) {
	c := w.device("d1")
	if err := w.Publish(mqtt.Message{Device: "d1", Name: "reboot", Expires: time.Now().Add(-time.Second)}); !errors.Is(err, mqtt.ErrExpired) {
		t.Errorf("expired: %v", err)
	}
	w.must(mqtt.Message{Device: "d1", Name: "identify", Expires: time.Now().Add(time.Second)})
	if got := c.take().topic; got != "nh/d1/down/identify" {
		t.Errorf("got %s", got)
	}
	if n := w.Health().Dropped["expired"]; n != 1 {
		t.Errorf("%d counted as expired, want 1", n)
	}
}

func testEnd(t *testing.T, w *world) {
	w.device("d1")
	w.device("d2")
	w.must(mqtt.Message{Device: "d2", Name: "reboot"}) // which d2 does not acknowledge
	w.stop(t)
	if err := w.Publish(mqtt.Message{Device: "d1", Name: "link", Payload: []byte("up"), Retain: true}); !errors.Is(err, mqtt.ErrOffline) {
		t.Errorf("publish after the end: %v", err)
	}
	if w.Health().Err == nil {
		t.Error("healthy after the end")
	}
	w.done <- nil
}
