package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/internal/gateway"
)

// A tenant is a gateway on a foreign broker.
type tenant struct {
	t    *testing.T
	id   string
	log  bytes.Buffer // read when it has ended, or nothing happens
	cut  atomic.Bool  // cannot reach the broker
	stop context.CancelFunc
	done chan error
}

func newTenant(t *testing.T, b *rivalBroker, id string) *tenant {
	t.Helper()
	n := &tenant{t: t, id: id, done: make(chan error, 1)}
	config := gateway.Default()
	config.ID, config.StateDir = id, filepath.Join(t.TempDir(), "state")
	config.Hub.URL = "wss://hub.test/device-socket/websocket"
	config.Identity.Directory = &gateway.Directory{Path: t.TempDir()}
	config.MQTT.Embedded, config.Web.Listen = nil, ""
	config.MQTT.Prefix = "nh"
	config.MQTT.External = &gateway.External{URL: "mqtt://127.0.0.1", ClientID: "ganglion-" + id}
	g, err := gateway.New(config, gateway.Options{
		Version: "0.0.0", Log: slog.New(slog.NewTextHandler(&n.log, nil)),
		MQTTDial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if n.cut.Load() {
				return nil, errors.New("no route")
			}
			return b.Dial(ctx, network, addr)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	go func() { n.done <- g.Run(ctx) }()
	t.Cleanup(stop)
	return n
}

// end stops it, which must have nothing to complain of.
func (n *tenant) end() {
	n.t.Helper()
	n.stop()
	if err := <-n.done; err != nil {
		n.t.Errorf("%s: %v\n%s", n.id, err, &n.log)
	}
}

// yields wants it to end by itself, because of rival.
func (n *tenant) yields(rival string) {
	n.t.Helper()
	select {
	case err := <-n.done:
		if err == nil || !strings.Contains(err.Error(), `gateway "`+rival+`" is online under mqtt.prefix "nh" too`) {
			n.t.Errorf("%s ended with %v, want because of %s", n.id, err, rival)
		}
	case <-time.After(10 * time.Second):
		n.t.Fatalf("%s does not give way\n%s", n.id, &n.log)
	}
}

// stays wants it to be running.
func (n *tenant) stays() {
	n.t.Helper()
	select {
	case err := <-n.done:
		n.t.Fatalf("%s has ended: %v\n%s", n.id, err, &n.log)
	default:
	}
}

// online waits until the broker says that id is.
func online(t *testing.T, b *rivalBroker, id string) {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		synctest.Wait()
		said, _ := b.says()
		if strings.Contains(said, `"online"`) && strings.Contains(said, `"`+id+`"`) {
			return
		}
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("%s is not online: %q", id, said)
		}
	}
}

func offline(t *testing.T, b *rivalBroker) {
	t.Helper()
	synctest.Wait()
	if said, _ := b.says(); !strings.Contains(said, `"offline"`) {
		t.Errorf("the broker says %q, want offline", said)
	}
}

// What was said to a gateway that was not there is no rival.
func TestRivalLongGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRivalBroker(t)
		for _, id := range []string{"site-A", "site-B", "site-A", "site-B"} {
			n := newTenant(t, b, id)
			online(t, b, id)
			time.Sleep(time.Minute)
			n.stays()
			n.end()
			offline(t, b)
		}
	})
}

// The newcomer stops before it has said a word.
func TestRivalNewcomer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRivalBroker(t)
		first := newTenant(t, b, "site-A")
		online(t, b, "site-A")
		_, before := b.says()
		newTenant(t, b, "site-B").yields("site-A")
		time.Sleep(time.Minute)
		first.stays()
		if said, after := b.says(); after != before || !strings.Contains(said, "site-A") {
			t.Errorf("%d publishes by a gateway that gave way; the broker says %q", after-before, said)
		}
		first.end()
		offline(t, b)
	})
}

// Of two that start together one stays, even if both have looked before either
// was heard.
func TestRivalTogether(t *testing.T) {
	for _, slow := range []bool{false, true} {
		t.Run(fmt.Sprintf("slow=%t", slow), func(t *testing.T) {
			for range 10 {
				synctest.Test(t, func(t *testing.T) { rivalsTogether(t, slow) })
			}
		})
	}
}

func rivalsTogether(t *testing.T, slow bool) {
	b := newRivalBroker(t)
	if slow {
		b.hold()
	}
	one, two := newTenant(t, b, "site-A"), newTenant(t, b, "site-B")
	if slow {
		time.Sleep(5 * time.Second)
		if _, n := b.says(); n != 2 {
			t.Fatalf("%d announcements, want both", n)
		}
		b.release()
	}
	var err error
	select {
	case err = <-one.done:
		one, two = two, one
	case err = <-two.done:
	case <-time.After(10 * time.Second):
		t.Fatal("both stay")
	}
	if err == nil || !strings.Contains(err.Error(), one.id) {
		t.Errorf("%s ended with %v, want because of %s", two.id, err, one.id)
	}
	time.Sleep(time.Minute)
	one.stays()
	online(t, b, one.id)
	one.end()
	offline(t, b)
}

// Our will, published while the connection was lost, and a cleared topic do not
// stand.
func TestRivalNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRivalBroker(t)
		n := newTenant(t, b, "site-A")
		online(t, b, "site-A")
		b.Drop()
		offline(t, b)
		online(t, b, "site-A")
		b.publish("nh/gateway", nil, true)
		online(t, b, "site-A")
		b.publish("nh/gateway", []byte(`{"state":"offline","boot":1}`), true) // a will that comes late
		online(t, b, "site-A")
		b.publish("nh/gateway", []byte("nonsense"), false)
		time.Sleep(time.Minute)
		n.stays()
		n.end()
	})
}

// Who loses the broker and finds another in its place is the newcomer.
func TestRivalMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRivalBroker(t)
		lost := newTenant(t, b, "site-A")
		online(t, b, "site-A")
		lost.cut.Store(true)
		b.Drop()
		other := newTenant(t, b, "site-B")
		online(t, b, "site-B")
		_, before := b.says()
		time.Sleep(time.Minute)
		lost.stays()
		lost.cut.Store(false)
		begun := time.Now()
		select {
		case err := <-lost.done:
			if err == nil || !strings.Contains(err.Error(), "site-B") {
				t.Errorf("site-A ended with %v", err)
			}
		case <-time.After(time.Minute): // twice the longest pause between attempts
			t.Fatalf("both stay, %s after the connection\n%s", time.Since(begun), &lost.log)
		}
		time.Sleep(time.Minute)
		other.stays()
		if said, after := b.says(); after != before || !strings.Contains(said, "site-B") {
			t.Errorf("%d publishes by a gateway that gave way; the broker says %q", after-before, said)
		}
		other.end()
		offline(t, b)
	})
}
