package mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/internal/memnet"
	"ganglion/mqtt"
)

// A witness is a Handler that writes down what it hears.
type witness struct {
	received func(device, name string, payload []byte) error // nil: accept

	mu    sync.Mutex // guards lines
	lines []string
	news  chan struct{} // one poke for each line, as long as there is room
}

func newWitness() *witness { return &witness{news: make(chan struct{}, 1)} }

func (r *witness) add(format string, args ...any) {
	r.mu.Lock()
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default:
	}
}

func (r *witness) Online(d string, c mqtt.Client) {
	r.add("%s online v%d packet %d", d, c.Version, c.MaxPacket)
}
func (r *witness) Offline(d string)               { r.add("%s offline", d) }
func (r *witness) Refused(d, n string, why error) { r.add("%s refused %s: %v", d, n, why) }
func (r *witness) Received(d, n string, p []byte) error {
	r.add("%s %s=%s", d, n, p)
	if r.received != nil {
		return r.received(d, n, p)
	}
	return nil
}

func (r *witness) log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.lines...)
}

// wait waits until the handler has heard line n times.
func (r *witness) wait(t testing.TB, line string, n int) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		seen := 0
		for _, l := range r.log() {
			if l == line {
				seen++
			}
		}
		if seen >= n {
			return
		}
		select {
		case <-r.news:
		case <-deadline:
			t.Fatalf("no %q (%d times) in %q", line, n, r.log())
		}
	}
}

func (r *witness) expect(t testing.TB, want ...string) {
	t.Helper()
	if got := r.log(); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("handler heard\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A broker is an Embedded that runs for one test.
type broker struct {
	*mqtt.Embedded
	*witness
	t    testing.TB
	dial func() (net.Conn, error)
	stop func() error // ends Run and returns its error
}

var prefix = mqtt.Topics{Prefix: "nh"}

// onMemory runs a broker on a memnet inside a synctest bubble.
func onMemory(t *testing.T, c mqtt.EmbeddedConfig, f func(*testing.T, *broker)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := memnet.Listen()
		c.Listener = l
		f(t, runBroker(t, c, newWitness(), func() (net.Conn, error) { return l.Dial(t.Context(), "", "") }))
	})
}

// onLoopback runs a broker on TCP.
func onLoopback(t *testing.T, c mqtt.EmbeddedConfig, h mqtt.Handler) *broker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Listener = l
	return runBroker(t, c, h, func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) })
}

func runBroker(t *testing.T, c mqtt.EmbeddedConfig, h mqtt.Handler, dial func() (net.Conn, error)) *broker {
	t.Helper()
	c.Topics = prefix
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	e, err := mqtt.NewEmbedded(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx, h) }()
	w, _ := h.(*witness)
	b := &broker{Embedded: e, witness: w, t: t, dial: dial}
	b.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(5 * time.Second):
			return errors.New("Run did not return within 5 s")
		}
	})
	t.Cleanup(func() {
		if err := b.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return b
}

// socket dials without saying anything.
func (b *broker) socket() *rawClient {
	b.t.Helper()
	c, err := b.dial()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return newRawClient(b.t, c)
}

// connect dials and fails unless CONNECT is accepted without a session. The
// Handler has heard Online when it returns.
func (b *broker) connect(o rawConnect) *rawClient {
	b.t.Helper()
	c := b.socket()
	if ack := c.hello(o); ack[0] != 0 || ack[1] != 0 {
		b.t.Fatalf("CONNACK %x", ack)
	}
	c.alive()
	return c
}

// device is a connected device that has subscribed to all of its down/.
func (b *broker) device(o rawConnect) *rawClient {
	b.t.Helper()
	c := b.connect(o)
	if code := c.subscribe("nh/"+o.id+"/down/#", 1); code != 1 {
		b.t.Fatalf("SUBACK %x", code)
	}
	return c
}

func (b *broker) publish(m mqtt.Message) {
	b.t.Helper()
	if err := b.Publish(m); err != nil {
		b.t.Fatalf("publish %s to %s: %v", m.Name, m.Device, err)
	}
}

func TestEmbeddedConversation(t *testing.T) {
	for _, v5 := range []bool{false, true} {
		t.Run(fmt.Sprint("v5=", v5), func(t *testing.T) {
			onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
				c := b.device(rawConnect{id: "probe-1", v5: v5, keepalive: 60})
				c.publish("nh/probe-1/up/hello", "1.4.0", 1, 7, false)
				if ack := c.expect(0x40); ack[1] != 7 {
					t.Fatalf("PUBACK %x", ack)
				}
				c.publish("nh/probe-1/up/progress", "1", 0, 0, false)
				b.publish(mqtt.Message{Device: "probe-1", Name: "reboot", Payload: []byte(`{"ref":1}`)})
				if p := c.take(); p.String() != `nh/probe-1/down/reboot={"ref":1} qos 1 retain false` {
					t.Fatal(p)
				}
				b.publish(mqtt.Message{Device: "probe-1", Name: "fw", Payload: []byte("chunk")})
				if p := c.take(); p.String() != "nh/probe-1/down/fw=chunk qos 0 retain false" {
					t.Fatal(p)
				}
				if h := b.Health(); h.Err != nil || h.Devices != 1 || len(h.Dropped) != 0 {
					t.Fatalf("%+v", h)
				}
				c.send([]byte{0xe0, 0})
				c.gone(time.Second)
				synctest.Wait()
				version := 4
				if v5 {
					version = 5
				}
				b.expect(t, fmt.Sprintf("probe-1 online v%d packet 0", version), "probe-1 hello=1.4.0", "probe-1 progress=1", "probe-1 offline")
				if h := b.Health(); h.Devices != 0 {
					t.Fatalf("%+v", h)
				}
			})
		})
	}
}
