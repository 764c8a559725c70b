package device_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ganglion/internal/device"
	"ganglion/internal/memnet"
)

// A heard is one packet that a device sent, as far as the broker reads it.
type heard struct {
	conn    int // which connection, from 1
	kind    byte
	flags   byte
	topic   string
	payload string
	raw     string // all of the packet but its fixed header
	at      time.Time
}

// A broker accepts every device, grants everything and remembers what it
// heard. It shares no code with the device. mu guards all but the listener.
type broker struct {
	t testing.TB
	*memnet.Listener
	mu     sync.Mutex
	conns  []net.Conn
	all    []heard
	mute   bool // answers nothing but CONNECT and SUBSCRIBE
	noAck  bool
	refuse byte           // CONNACK return code
	fresh  chan struct{}  // closed and replaced at every packet
	wg     sync.WaitGroup // one per connection, and one that accepts
}

func newBroker(t testing.TB) *broker {
	b := &broker{t: t, Listener: memnet.Listen(), fresh: make(chan struct{})}
	b.wg.Go(func() {
		for {
			c, err := b.Accept()
			if err != nil {
				return
			}
			b.mu.Lock()
			b.conns = append(b.conns, c)
			n := len(b.conns)
			b.mu.Unlock()
			b.wg.Go(func() { b.serve(n, c) })
		}
	})
	t.Cleanup(func() {
		b.Close()
		b.configure(func() {
			for _, c := range b.conns {
				c.Close()
			}
		})
		b.wg.Wait()
	})
	return b
}

func (b *broker) serve(n int, c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		h, err := hear(r)
		if err != nil {
			return
		}
		h.conn, h.at = n, time.Now()
		b.mu.Lock()
		b.all = append(b.all, h)
		close(b.fresh)
		b.fresh = make(chan struct{})
		mute, noAck, refuse := b.mute, b.noAck, b.refuse
		b.mu.Unlock()
		var answer string
		switch {
		case h.kind == 1:
			answer = "\x20\x02\x00" + string(refuse)
		case h.kind == 8:
			answer = "\x90\x04" + h.raw[:2] + "\x01\x01"
		case mute:
		case h.kind == 3 && h.flags>>1&3 == 1 && !noAck:
			answer = "\x40\x02" + h.raw[2+len(h.topic):][:2]
		case h.kind == 12:
			answer = "\xd0\x00"
		case h.kind == 0 || h.kind == 15:
			return
		}
		io.WriteString(c, answer) // a device that is gone may have said more before
	}
}

func hear(r *bufio.Reader) (heard, error) {
	first, err := r.ReadByte()
	if err != nil {
		return heard{}, err
	}
	n, err := binary.ReadUvarint(r)
	if err != nil || n > 1<<20 {
		return heard{}, fmt.Errorf("remaining length %d, %v", n, err)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return heard{}, err
	}
	h := heard{kind: first >> 4, flags: first & 15, raw: string(body)}
	if h.kind != 3 {
		return h, nil
	}
	if n < 2 || int(n) < 2+int(binary.BigEndian.Uint16(body)) {
		return heard{}, fmt.Errorf("PUBLISH % x", body)
	}
	end := 2 + int(binary.BigEndian.Uint16(body))
	h.topic, h.payload = h.raw[2:end], h.raw[end:]
	if h.flags>>1&3 > 0 {
		h.payload = h.payload[2:]
	}
	return h, nil
}

// await returns the first packet from index on that match accepts, and the
// index after it.
func (b *broker) await(from int, match func(heard) bool) (heard, int) {
	b.t.Helper()
	limit := time.After(time.Hour)
	for {
		b.mu.Lock()
		fresh := b.fresh
		for i := from; i < len(b.all); i++ {
			if match(b.all[i]) {
				defer b.mu.Unlock()
				return b.all[i], i + 1
			}
		}
		b.mu.Unlock()
		select {
		case <-fresh:
		case <-limit:
			b.t.Fatalf("the device did not say it; it said:\n%s", b.transcript())
		}
	}
}

func (b *broker) transcript() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var s strings.Builder
	for _, h := range b.all {
		if h.kind == 12 {
			continue // pings
		}
		fmt.Fprintf(&s, "%d type %d flags %d %s %.80q\n", h.conn, h.kind, h.flags, h.topic, h.payload)
	}
	return s.String()
}

// said are the packets heard so far.
func (b *broker) said() []heard {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.all)
}

// payloads are all that was published to topic.
func (b *broker) payloads(topic string) []string {
	var all []string
	for _, h := range b.said() {
		if h.kind == 3 && h.topic == topic {
			all = append(all, h.payload)
		}
	}
	return all
}

func (b *broker) configure(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// send publishes at QoS 1 on the newest connection.
func (b *broker) send(topic, payload string) {
	b.t.Helper()
	b.mu.Lock()
	c := b.conns[len(b.conns)-1]
	b.mu.Unlock()
	body := binary.BigEndian.AppendUint16(nil, uint16(len(topic)))
	body = append(append(body, topic...), 0, 77)
	body = append(body, payload...)
	packet := append(binary.AppendUvarint([]byte{0x32}, uint64(len(body))), body...)
	c.SetWriteDeadline(time.Now().Add(time.Minute))
	defer c.SetWriteDeadline(time.Time{})
	if _, err := c.Write(packet); err != nil {
		b.t.Errorf("send %s: %v", topic, err)
	}
}

func published(topic string) func(heard) bool {
	return func(h heard) bool { return h.kind == 3 && h.topic == topic }
}

// A bench is a device under test: its broker, its download server and its
// events.
type bench struct {
	*broker
	device *device.Device
	web    *memnet.Listener
	stop   func() error // ends Run

	events chan device.Event
}

// start runs a device with the id probe in a bubble.
func start(t testing.TB, c device.Config, image http.Handler) *bench {
	b := &bench{broker: newBroker(t), web: memnet.Listen(), events: make(chan device.Event, 100_000)}
	c.Broker, c.ID = "broker:1883", "probe"
	c.Log = func(e device.Event) { b.events <- e }
	if c.Dial == nil {
		c.Dial = b.Dial
	}
	c.HTTP = &http.Client{Transport: &http.Transport{DialContext: b.web.Dial, DisableKeepAlives: true}}
	server := &http.Server{Handler: image}
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(b.web) })
	b.device = device.New(c)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	wg.Go(func() { done <- b.device.Run(ctx) })
	b.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := b.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		server.Close()
		wg.Wait()
	})
	return b
}

// event waits for the next event of type W and skips others.
func event[W device.What](t testing.TB, b *bench) W {
	t.Helper()
	limit := time.After(time.Hour)
	for {
		select {
		case e := <-b.events:
			if w, ok := e.What.(W); ok {
				return w
			}
		case <-limit:
			var w W
			t.Fatalf("no %T; the device said:\n%s", w, b.transcript())
		}
	}
}

// drain takes the events that have happened.
func (b *bench) drain() []device.Event {
	var all []device.Event
	for {
		select {
		case e := <-b.events:
			all = append(all, e)
		default:
			return all
		}
	}
}
