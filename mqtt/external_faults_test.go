package mqtt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	mochi "github.com/mochi-mqtt/server/v2"
	mochipackets "github.com/mochi-mqtt/server/v2/packets"

	"ganglion/internal/memnet"
	"ganglion/mqtt"
)

// While the broker is away state coalesces and commands wait for as long as
// they are worth.
func TestExternalBrokerAway(t *testing.T) {
	bubble(t, func(t *testing.T, s *site, g *gateway, r *recorder) {
		must := func(want error, m mqtt.Message) {
			t.Helper()
			if err := g.Publish(m); !errors.Is(err, want) {
				t.Errorf("publish %s %s: %v, want %v", m.Name, m.Payload, err, want)
			}
		}
		s.publish("nh/d1/up/online", "1", true)
		s.stop()
		within(t, time.Minute, "loss noticed", func() bool { return g.Health().Err != nil })
		time.Sleep(10 * time.Minute)
		must(nil, mqtt.Message{Device: "d1", Name: "reboot", Payload: []byte("1"), Expires: time.Now().Add(time.Second)})
		must(nil, mqtt.Message{Device: "d1", Name: "reboot", Payload: []byte("2"), Expires: time.Now().Add(time.Hour)})
		for i := range 2000 {
			must(nil, mqtt.Message{Device: "d1", Name: "link", Payload: fmt.Append(nil, i), Retain: true})
		}
		must(mqtt.ErrAbsent, mqtt.Message{Device: "d2", Name: "reboot"})
		must(mqtt.ErrOffline, mqtt.Message{Device: "d1", Name: "fw"})
		must(mqtt.ErrExpired, mqtt.Message{Device: "d1", Name: "reboot", Expires: time.Now()})
		must(mqtt.ErrTopic, mqtt.Message{Device: "d/1", Name: "reboot"})
		must(mqtt.ErrTopic, mqtt.Message{Device: "d1", Name: "a/#"})
		must(mqtt.ErrTooLarge, mqtt.Message{Device: "d1", Name: "link", Payload: make([]byte, 1<<20), Retain: true})
		for i := range 63 {
			must(nil, mqtt.Message{Device: "d1", Name: "identify", Payload: fmt.Append(nil, i), Expires: time.Now().Add(time.Second)})
			if i == 61 {
				must(mqtt.ErrQueueFull, mqtt.Message{Device: "d1", Name: "identify"})
				time.Sleep(2 * time.Second)
			}
		}
		time.Sleep(2 * time.Second)
		s.start()
		var got []string
		err := s.broker().Subscribe("nh/#", 1, func(_ *mochi.Client, _ mochipackets.Subscription, pk mochipackets.Packet) {
			got = append(got, pk.TopicName+" "+string(pk.Payload))
		})
		if err != nil {
			t.Fatal(err)
		}
		g.up(t)
		synctest.Wait()
		if want := []string{"nh/d1/down/reboot 2", "nh/d1/down/link 1999"}; !slices.Equal(got, want) {
			t.Errorf("published %q, want %q", got, want)
		}
		r.want(t, "online d1")
		want := map[string]uint64{"expired": 65, "absent": 1, "offline": 1, "bad_topic": 2, "too_large": 1, "queue_full": 1}
		if h := g.Health(); fmt.Sprint(h.Dropped) != fmt.Sprint(want) || h.Devices != 1 {
			t.Errorf("health %+v, want dropped %v", h, want)
		}
	})
}

// A connection that is reset, or that goes silent, costs no device its
// presence and no message.
func TestExternalConnectionLost(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cut   func(*memnet.Listener)
		limit time.Duration
	}{
		{"reset", (*memnet.Listener).Drop, 3 * time.Second},
		{"half-open", (*memnet.Listener).Blackhole, 90 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site, g *gateway, r *recorder) {
				s.publish("nh/d1/up/online", "1", true)
				s.publish("nh/d2/up/online", "1", true)
				tt.cut(s.net())
				s.publish("nh/d1/up/status", "while away", false)
				time.Sleep(time.Second) // mochi sorts what it sends again by the second
				s.publish("nh/d2/up/online", "0", true)
				within(t, tt.limit, "loss noticed", func() bool { return g.Health().Err != nil })
				if n := g.Health().Devices; n != 2 {
					t.Errorf("%d devices while the broker is away, want 2", n)
				}
				within(t, 5*time.Second, "connected again", func() bool { return g.Health().Err == nil })
				r.want(t, "online d1", "online d2", "received d1 status while away", "offline d2")
			})
		})
	}
}

// A refused message is not acknowledged, and neither is what follows: all of
// it comes again, in order, after a pause.
func TestExternalReceivedError(t *testing.T) {
	bubble(t, func(t *testing.T, s *site, g *gateway, r *recorder) {
		var last time.Time
		tries := 0
		r.mu.Lock()
		r.refuse = func(_, _ string, payload []byte) error {
			if string(payload) != "2" || tries == 3 {
				return nil
			}
			if tries > 0 && time.Since(last) < time.Second {
				t.Errorf("tried again after %v", time.Since(last))
			}
			tries++
			last = time.Now()
			return errors.New("disk full")
		}
		r.mu.Unlock()
		s.publish("nh/d1/up/online", "1", true)
		for i := range 3 {
			s.publish("nh/d1/up/status", fmt.Sprint(i+1), false)
			time.Sleep(time.Second) // mochi sorts what it sends again by the second
		}
		within(t, time.Minute, "taken at last", func() bool { return slices.Contains(r.all(), "received d1 status 3") })
		r.want(t, "online d1", "received d1 status 1", "declined d1 status 2", "declined d1 status 2", "declined d1 status 2",
			"received d1 status 2", "received d1 status 3")
		if p, ok := s.retained("nh/gateway"); ok {
			t.Errorf("our will was published: %q", p)
		}
	})
}

func TestExternalClientIDTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := newSite(t), new(recorder)
		var log bytes.Buffer
		c := s.config()
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
		g := run(t, external(t, c), r)
		g.up(t)
		stop, other := make(chan struct{}), make(chan struct{})
		go func() { // connects again 100 ms after each loss
			defer close(other)
			for {
				conn, err := s.Dial(context.Background(), "", "")
				if err != nil {
					t.Error(err)
					return
				}
				m := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
				m.ProtocolName, m.ProtocolVersion, m.ClientIdentifier = "MQTT", 4, c.ClientID
				m.Write(conn)
				ended := make(chan struct{})
				go func() { io.Copy(io.Discard, conn); close(ended) }()
				select {
				case <-stop:
					conn.Close()
					<-ended
					return
				case <-ended:
				}
				conn.Close()
				time.Sleep(100 * time.Millisecond)
			}
		}()
		defer func() {
			if t.Failed() {
				t.Log(log.String())
			}
		}()
		within(t, time.Minute, "alarm", func() bool {
			err := g.Health().Err
			return err != nil && strings.Contains(err.Error(), `another client uses this client id "ganglion-site7"`)
		})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := strings.Count(log.String(), "another client uses"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		if n := strings.Count(log.String(), "connected to the broker"); n > 30 {
			t.Errorf("connected %d times in ten minutes", n)
		}
		close(stop)
		<-other
		within(t, 2*time.Minute, "all clear", func() bool { return g.Health().Err == nil })
		g.stop(t)
		s.stop()
	})
}

// hostile answers each connection by script and then holds it.
func hostile(t *testing.T, script func(conn net.Conn)) *memnet.Listener {
	l := memnet.Listen()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				if _, err := packets.ReadPacket(conn); err != nil {
					return
				}
				conn.Write([]byte{0x20, 2, 0, 0})
				script(conn)
				io.Copy(io.Discard, conn)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l
}

// grant answers the SUBSCRIBE that comes next.
func grant(conn net.Conn) {
	if _, err := packets.ReadPacket(conn); err == nil {
		conn.Write([]byte{0x90, 4, 0, 1, 1, 1})
	}
}

func TestExternalHostileBroker(t *testing.T) {
	// Each is sent after the SUBSCRIBE was granted.
	for _, tt := range []struct {
		name string
		sent []byte
		want string
	}{
		{"255 MiB in five bytes", []byte{0x30, 0xff, 0xff, 0xff, 0x7f}, ""}, // read and thrown away
		{"a length of five bytes", []byte{0x30, 0xff, 0xff, 0xff, 0xff, 0x7f}, "length of a packet"},
		{"255 MiB of PINGRESP", []byte{0xd0, 0xff, 0xff, 0xff, 0x7f}, "packet type 13"},
		{"more answers than questions", []byte{0x90, 9, 0, 1, 1, 1, 1, 1, 1, 1, 1}, "packet type 9"},
		{"a client's packet", []byte{0xc0, 0}, "packet type 12"},
		{"QoS 3", []byte{0x36, 4, 0, 1, 'a', 'b'}, "PUBLISH"},
		{"a topic longer than its packet", []byte{0x30, 0x80, 0x80, 0x20, 0xff, 0xff}, ""},
		{"an acknowledgement of nothing", []byte{0x40, 2, 0xff, 0xff}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := hostile(t, func(conn net.Conn) { grant(conn); conn.Write(tt.sent) })
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				g := run(t, external(t, mqtt.ExternalConfig{Topics: mqtt.Topics{Prefix: "nh"}, URL: "mqtt://b", ClientID: "g", Dial: l.Dial}), new(recorder))
				time.Sleep(15 * time.Second)
				synctest.Wait()
				runtime.ReadMemStats(&after)
				if grown := after.TotalAlloc - before.TotalAlloc; grown > 32<<20 {
					t.Errorf("%d MiB allocated", grown>>20)
				}
				if err := g.Health().Err; tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("health says %v, want %q", err, tt.want)
				}
				g.stop(t)
				l.Close()
			})
		})
	}
}

// At the end what is queued goes out, then DISCONNECT, so that the broker does
// not publish the will; a broker that does not read cannot hold it up.
func TestExternalEnd(t *testing.T) {
	bubble(t, func(t *testing.T, s *site, g *gateway, r *recorder) {
		s.publish("nh/d1/up/online", "1", true)
		for i := range 60 {
			if err := g.Publish(mqtt.Message{Device: "d1", Name: "link", Payload: fmt.Append(nil, i), Retain: true}); err != nil {
				t.Error(err)
			}
		}
		if err := g.Publish(mqtt.Message{Name: "gateway", Payload: []byte("bye"), Retain: true}); err != nil {
			t.Error(err)
		}
		g.cancel()
		if err := <-g.done; err != nil {
			t.Error(err)
		}
		g.done <- nil
		synctest.Wait()
		for topic, want := range map[string]string{"nh/gateway": "bye", "nh/d1/down/link": "59"} {
			if got, _ := s.retained(topic); got != want {
				t.Errorf("%s is %q, want %q", topic, got, want)
			}
		}
		if err := g.Publish(mqtt.Message{Name: "gateway"}); !errors.Is(err, mqtt.ErrOffline) {
			t.Errorf("publish after the end: %v", err)
		}
	})
	t.Run("stalled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			stalled := make(chan struct{})
			l := hostile(t, func(conn net.Conn) { grant(conn); <-stalled })
			g := run(t, external(t, mqtt.ExternalConfig{Topics: mqtt.Topics{Prefix: "nh"}, URL: "mqtt://b", ClientID: "g", Dial: l.Dial}), new(recorder))
			g.up(t)
			for i := range 32 {
				m := mqtt.Message{Device: fmt.Sprint("d", i), Name: "update", Payload: make([]byte, 64<<10), Retain: true}
				if err := g.Publish(m); err != nil {
					t.Error(err)
				}
			}
			time.Sleep(time.Second)
			g.stop(t)
			close(stalled)
			l.Close()
		})
	})
}

// A broker that writes before it reads on waits for us to read; we must not
// wait for it to take what we publish and acknowledge.
func TestExternalBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 2000
		large := make([]byte, 16<<10)
		written := make(chan struct{})
		l := hostile(t, func(conn net.Conn) {
			grant(conn)
			for i := range n {
				p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
				p.TopicName, p.Qos, p.MessageID, p.Payload = fmt.Sprintf("nh/d%d/up/shell", i%4), 1, uint16(i+1), large
				conn.SetWriteDeadline(time.Now().Add(time.Second))
				if err := p.Write(conn); err != nil {
					t.Errorf("message %d: %v", i, err)
					break
				}
			}
			close(written)
		})
		e := external(t, mqtt.ExternalConfig{Topics: mqtt.Topics{Prefix: "nh"}, URL: "mqtt://b", ClientID: "g", Dial: l.Dial})
		r := &recorder{refuse: func(device, _ string, _ []byte) error {
			if err := e.Publish(mqtt.Message{Device: device, Name: "shell", Payload: large}); err != nil && !errors.Is(err, mqtt.ErrQueueFull) {
				t.Error(err)
			}
			return nil
		}}
		g := run(t, e, r)
		<-written
		synctest.Wait()
		if got := len(r.all()); got != n+4 {
			t.Errorf("%d events, want %d", got, n+4)
		}
		g.stop(t)
		l.Close()
	})
}
