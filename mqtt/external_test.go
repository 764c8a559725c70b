package mqtt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	mochipackets "github.com/mochi-mqtt/server/v2/packets"

	"ganglion/internal/memnet"
	"ganglion/mqtt"
)

// recorder is a Handler that writes down what it is told.
type recorder struct {
	mu     sync.Mutex // guards the rest
	events []string
	refuse func(device, name string, payload []byte) error
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

func (r *recorder) Online(device string, _ mqtt.Client) { r.note("online %s", device) }
func (r *recorder) Offline(device string)               { r.note("offline %s", device) }
func (r *recorder) Refused(device, name string, why error) {
	r.note("refused %s %s: %v", device, name, why)
}
func (r *recorder) Received(device, name string, payload []byte) error {
	r.mu.Lock()
	refuse := r.refuse
	r.mu.Unlock()
	if refuse != nil {
		if err := refuse(device, name, payload); err != nil {
			r.note("declined %s %s %s", device, name, payload)
			return err
		}
	}
	r.note("received %s %s %s", device, name, payload)
	return nil
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

func (r *recorder) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := r.all(); !slices.Equal(got, want) {
		t.Errorf("the handler was told\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// within waits, in the bubble's time, until ok.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		synctest.Wait()
	}
}

// site is somebody's broker, which lets everybody do everything, and the
// network it is reached by.
type site struct {
	t   *testing.T
	mu  sync.Mutex // guards the rest
	l   *memnet.Listener
	srv *mochi.Server
}

type allowAll struct{ mochi.HookBase }

func (allowAll) ID() string { return "allow-all" }
func (allowAll) Provides(b byte) bool {
	return b == mochi.OnConnectAuthenticate || b == mochi.OnACLCheck
}
func (allowAll) OnConnectAuthenticate(*mochi.Client, mochipackets.Packet) bool { return true }
func (allowAll) OnACLCheck(*mochi.Client, string, bool) bool                   { return true }

func newSite(t *testing.T) *site {
	s := &site{t: t}
	s.start()
	return s
}

func (s *site) start() {
	s.t.Helper()
	caps := mochi.NewDefaultServerCapabilities()
	caps.ReceiveMaximum = 1<<16 - 1 // mochi forgets what it holds back
	srv := mochi.New(&mochi.Options{Capabilities: caps, Logger: slog.New(slog.DiscardHandler), InlineClient: true})
	l := memnet.Listen()
	if err := errors.Join(srv.AddHook(new(allowAll), nil), srv.AddListener(listeners.NewNet("mem", l)), srv.Serve()); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.l, s.srv = l, srv
}

func (s *site) stop() {
	s.mu.Lock()
	srv, l := s.srv, s.l
	s.mu.Unlock()
	l.Close()
	if err := srv.Close(); err != nil {
		s.t.Error(err)
	}
}

func (s *site) broker() *mochi.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.srv
}

func (s *site) net() *memnet.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.l
}

func (s *site) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return s.net().Dial(ctx, network, addr)
}

func (s *site) config() mqtt.ExternalConfig {
	return mqtt.ExternalConfig{
		Topics: mqtt.Topics{Prefix: "nh"}, URL: "mqtt://broker.local", ClientID: "ganglion-site7", Dial: s.Dial,
		Will: mqtt.Message{Name: "gateway", Payload: []byte("offline")},
	}
}

// publish is what somebody at the site does.
func (s *site) publish(topic, payload string, retain bool) {
	s.t.Helper()
	if err := s.broker().Publish(topic, []byte(payload), retain, 1); err != nil {
		s.t.Error(err)
	}
	synctest.Wait()
}

func (s *site) retained(topic string) (string, bool) {
	for _, pk := range s.broker().Topics.Messages(topic) {
		return string(pk.Payload), true
	}
	return "", false
}

// gateway is a running Bus.
type gateway struct {
	mqtt.Bus
	cancel context.CancelFunc
	done   chan error
}

// run serves r until the test ends or stop is called.
func run(t *testing.T, b mqtt.Bus, h mqtt.Handler) *gateway {
	ctx, cancel := context.WithCancel(t.Context())
	g := &gateway{Bus: b, cancel: cancel, done: make(chan error, 1)}
	go func() { g.done <- b.Run(ctx, h) }()
	return g
}

func (g *gateway) stop(t *testing.T) {
	t.Helper()
	g.cancel()
	start := time.Now()
	if err := <-g.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Run took %v to end", took)
	}
}

func (g *gateway) up(t *testing.T) {
	t.Helper()
	within(t, time.Minute, "connected to the broker", func() bool { return g.Health().Err == nil })
}

func external(t *testing.T, c mqtt.ExternalConfig) *mqtt.External {
	t.Helper()
	e, err := mqtt.NewExternal(c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// bubble runs f with a broker and a running External.
func bubble(t *testing.T, f func(t *testing.T, s *site, g *gateway, r *recorder)) {
	synctest.Test(t, func(t *testing.T) {
		s, r := newSite(t), new(recorder)
		g := run(t, external(t, s.config()), r)
		g.up(t)
		f(t, s, g, r)
		g.stop(t)
		s.stop()
	})
}

func TestExternalConfig(t *testing.T) {
	good := mqtt.ExternalConfig{Topics: mqtt.Topics{Prefix: "nh"}, ClientID: "g"}
	for _, tt := range []struct {
		url, want string // want "": fine
		edit      func(*mqtt.ExternalConfig)
	}{
		{url: "mqtt://broker"}, {url: "mqtts://broker:1"}, {url: "tcp://[::1]"}, {url: "ssl://b"}, {url: "tls://b"}, {url: "ws://b/mqtt"}, {url: "wss://b:1/"},
		{url: "", want: "url: scheme"},
		{url: "http://b", want: `url: scheme must be one of mqtt, mqtts, tcp, ssl, tls, ws, wss (got "http")`},
		{url: "broker:1883", want: "url: scheme"},
		{url: "mqtt://", want: "url: host missing"},
		{url: "mqtt://me:s3cret@b", want: "url: must hold no credentials"},
		{url: "mqtt://me:s3cret@b:x", want: "url: not a URL"},
		{url: "mqtt://b", want: "client_id: missing", edit: func(c *mqtt.ExternalConfig) { c.ClientID = "" }},
		{url: "mqtt://b", want: "username: missing", edit: func(c *mqtt.ExternalConfig) { c.Password = "s3cret" }},
		{url: "mqtt://b", want: "prefix:", edit: func(c *mqtt.ExternalConfig) { c.Prefix = "" }},
		{url: "mqtt://b", want: "prefix:", edit: func(c *mqtt.ExternalConfig) { c.Prefix = "a/#" }},
		{url: "mqtt://b", want: "will:", edit: func(c *mqtt.ExternalConfig) { c.Will.Device = "d1" }},
	} {
		c := good
		c.URL = tt.url
		if tt.edit != nil {
			tt.edit(&c)
		}
		_, err := mqtt.NewExternal(c)
		switch {
		case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%q: got %v, want %q", tt.url, err, tt.want)
		case err != nil && strings.Contains(err.Error(), "s3cret"):
			t.Errorf("%q: the error tells the password: %v", tt.url, err)
		}
	}
}

func TestExternalPresence(t *testing.T) {
	bubble(t, func(t *testing.T, s *site, g *gateway, r *recorder) {
		s.publish("nh/d1/up/online", "1", true)
		s.publish("nh/d1/up/hello", "1.4.0", false)
		s.publish("nh/d1/up/online", "1", true) // connected again
		s.publish("nh/d1/up/online", "0", true)
		s.publish("nh/d1/up/online", "0", true) // gone already
		s.publish("nh/d2/up/hello", "1.4.0", false)
		s.publish("nh/d2/up/online", "yes", false)
		s.publish("nh/d2/up/online", "", true) // somebody clears it
		s.publish("nh/-bad/up/hello", "x", false)
		s.publish("nh/gateway/up/hello", "x", false)
		s.publish("nh/d3/up", "x", false)
		r.want(t,
			"online d1", "received d1 hello 1.4.0", "online d1", "offline d1",
			"online d2", "received d2 hello 1.4.0", "refused d2 online: "+mqtt.ErrPresence.Error(), "offline d2")
		h := g.Health()
		if h.Devices != 0 || h.Dropped["bad_topic"] != 3 || h.Dropped["bad_presence"] != 1 {
			t.Errorf("health: %+v", h)
		}
	})
}

// A retained publish shows itself at the next SUBSCRIBE only, and then its
// clearing comes back to us as an empty message, which no device has sent.
func TestExternalRetained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := newSite(t), new(recorder)
		s.publish("nh/d1/up/online", "1", true)
		s.publish("nh/d1/up/validated", "stale", true)
		s.publish("nh/d2/up/status", strings.Repeat("s", 300<<10), true)
		g := run(t, external(t, s.config()), r)
		g.up(t)
		synctest.Wait()
		s.publish("nh/d1/up/validated", "", false)
		got := r.all()
		slices.Sort(got) // retained messages come in any order
		want := []string{"online d1", "received d1 validated ", "refused d1 validated: mqtt: retained publish", "refused d2 status: mqtt: retained publish"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		for _, topic := range []string{"nh/d1/up/validated", "nh/d2/up/status"} {
			if payload, ok := s.retained(topic); ok {
				t.Errorf("%s still says %.20q", topic, payload)
			}
		}
		if payload, _ := s.retained("nh/d1/up/online"); payload != "1" {
			t.Errorf("up/online is %q", payload)
		}
		g.stop(t)
		s.stop()
	})
}

// What cannot be held is refused by name and acknowledged, or one device could
// keep the gateway from the broker.
func TestExternalLargeMessage(t *testing.T) {
	bubble(t, func(t *testing.T, s *site, g *gateway, r *recorder) {
		s.publish("nh/d1/up/log", "before", false)
		s.publish("nh/d1/up/log", strings.Repeat("x", 2<<20), false)
		s.publish("nh/d1/up/log", "after", false)
		r.want(t, "online d1", "received d1 log before", "refused d1 log: mqtt: message too large", "received d1 log after")
		if err := g.Health().Err; err != nil {
			t.Error(err)
		}
		cl, _ := s.broker().Clients.Get("ganglion-site7")
		if n := cl.State.Inflight.Len(); n != 0 {
			t.Errorf("%d messages unacknowledged", n)
		}
	})
}

// While the broker is away state coalesces and commands wait for as long as
// they are worth; afterwards the gateway says again that it is there.
func TestExternalBrokerAway(t *testing.T) {
	bubble(t, func(t *testing.T, s *site, g *gateway, r *recorder) {
		must := func(want error, m mqtt.Message) {
			t.Helper()
			if err := g.Publish(m); !errors.Is(err, want) {
				t.Errorf("publish %s %s: %v, want %v", m.Name, m.Payload, err, want)
			}
		}
		must(nil, mqtt.Message{Name: "gateway", Payload: []byte("online"), Retain: true})
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
		if want := []string{"nh/gateway online", "nh/d1/down/reboot 2", "nh/d1/down/link 1999"}; !slices.Equal(got, want) {
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
				if err := g.Publish(mqtt.Message{Name: "gateway", Payload: []byte("online"), Retain: true}); err != nil {
					t.Error(err)
				}
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
				within(t, time.Second, "will overwritten", func() bool { p, _ := s.retained("nh/gateway"); return p == "online" })
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

func TestExternalHostileBroker(t *testing.T) {
	suback := []byte{0x90, 4, 0, 1, 1, 1}
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
		{"an acknowledgement of nothing", append(slices.Clone(suback), 0x40, 2, 0xff, 0xff), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := hostile(t, func(conn net.Conn) { conn.Write(tt.sent) })
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				g := run(t, external(t, mqtt.ExternalConfig{Topics: mqtt.Topics{Prefix: "nh"}, URL: "tcp://b", ClientID: "g", Dial: l.Dial}), new(recorder))
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
			l := hostile(t, func(conn net.Conn) { conn.Write([]byte{0x90, 4, 0, 1, 1, 1}); <-stalled })
			g := run(t, external(t, mqtt.ExternalConfig{Topics: mqtt.Topics{Prefix: "nh"}, URL: "tcp://b", ClientID: "g", Dial: l.Dial}), new(recorder))
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

func TestExternalGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		var said []string
		c := s.config()
		c.OnGateway = func(payload []byte) { said = append(said, string(payload)) }
		s.publish("nh/gateway", "other online", true)
		g := run(t, external(t, c), new(recorder))
		g.up(t)
		s.publish("nh/gateway", "other offline", true)
		s.net().Drop()
		time.Sleep(5 * time.Second)
		g.stop(t)
		s.stop()
		if want := []string{"other online", "other offline", "offline", "offline"}; !slices.Equal(said, want) {
			t.Errorf("heard %q, want %q", said, want) // the will, live and then retained
		}
	})
}

// pahoDial lets a paho client reach a memory network.
func pahoDial(dial func(context.Context, string, string) (net.Conn, error)) paho.OpenConnectionFunc {
	return func(*url.URL, paho.ClientOptions) (net.Conn, error) { return dial(context.Background(), "tcp", "") }
}
