package mqtt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

func TestExternalRetry(t *testing.T) {
	peer := fmt.Errorf("wrapped: %w", errExternalPeer)
	type step struct {
		up       time.Duration
		err      error
		min, max time.Duration
		conflict bool
	}
	s := time.Second
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"unreachable", []step{
			{0, io.EOF, 1 * s, 2 * s, false}, {0, io.EOF, 2 * s, 4 * s, false}, {0, io.EOF, 4 * s, 8 * s, false},
			{0, io.EOF, 8 * s, 16 * s, false}, {0, io.EOF, 15 * s, 30 * s, false}, {0, io.EOF, 15 * s, 30 * s, false},
			{time.Minute, io.EOF, 1 * s, 2 * s, false},
		}},
		{"taken over", []step{
			{1, peer, 1 * s, 2 * s, false}, {1, peer, 2 * s, 4 * s, false}, {1, peer, 4 * s, 8 * s, false},
			{1, peer, 30 * s, 35 * s, true}, {1, peer, 30 * s, 35 * s, true}, {1, peer, 30 * s, 35 * s, true},
			{time.Hour, peer, 1 * s, 2 * s, false},
		}},
		{"refused at the door", []step{ // was never let in
			{0, peer, 1 * s, 2 * s, false}, {0, peer, 2 * s, 4 * s, false}, {0, peer, 4 * s, 8 * s, false},
			{0, peer, 8 * s, 16 * s, false}, {0, peer, 15 * s, 30 * s, false},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r externalRetry
			now := time.Unix(0, 0)
			for i, st := range tt.steps {
				now = now.Add(st.up)
				wait := r.after(now, st.up, st.err)
				if wait < st.min || wait > st.max || r.conflict != st.conflict {
					t.Errorf("step %d: %v conflict %v, want %v–%v %v", i, wait, r.conflict, st.min, st.max, st.conflict)
				}
				now = now.Add(wait)
			}
		})
	}
}

func TestExternalQueue(t *testing.T) {
	q := newExternalQueue()
	item := func(device, name, payload string, retain bool) externalItem {
		m := Message{Device: device, Name: name, Payload: []byte(payload), Retain: retain}
		return externalItem{Message: m, topic: Topics{"nh"}.Of(m), qos: 1}
	}
	drain := func() (got []string) {
		for {
			it, ok := q.pop()
			if !ok {
				return got
			}
			got = append(got, it.topic+" "+string(it.Payload))
		}
	}
	check := func(what string, want ...string) {
		t.Helper()
		if got := drain(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
		if q.commands != 0 || len(q.perDev) != 0 || len(q.states) != 0 || q.items.Len() != 0 {
			t.Errorf("%s: empty, but counts %d commands, %d devices, %d states", what, q.commands, len(q.perDev), len(q.states))
		}
	}
	add := func(it externalItem, want error) {
		t.Helper()
		if err := q.add(it); !errors.Is(err, want) {
			t.Errorf("add %s: %v, want %v", it.topic, err, want)
		}
	}

	add(item("d", "link", "1", true), nil)
	add(item("d", "reboot", "2", false), nil)
	add(item("d", "link", "3", true), nil)
	check("newest state, where it was said", "nh/d/down/reboot 2", "nh/d/down/link 3")

	add(item("d", "link", "newer", true), nil)
	q.back(item("d", "link", "sent", true))
	q.back(item("d", "reboot", "sent", false))
	check("what comes back is first, but not before newer state", "nh/d/down/reboot sent", "nh/d/down/link newer")

	for i := range externalPerDevice {
		add(item("d", "reboot", fmt.Sprint(i), false), nil)
	}
	add(item("d", "reboot", "too many", false), ErrQueueFull)
	add(item("d", "link", "state", true), nil)
	add(item("e", "reboot", "of another", false), nil)
	if got := drain(); len(got) != externalPerDevice+2 {
		t.Errorf("%d items", len(got))
	}

	for i := range externalCommands {
		add(item(fmt.Sprint("d", i), "reboot", "", false), nil)
	}
	add(item("e", "reboot", "", false), ErrQueueFull)
	drain()
	for i := range externalStates {
		add(item(fmt.Sprint("d", i), "link", "", true), nil)
	}
	add(item("e", "link", "", true), ErrQueueFull)
	add(item("d7", "link", "", true), nil)
	drain()

	late := item("d", "reboot", "late", false)
	late.Expires = time.Unix(1, 0)
	add(late, nil)
	add(item("d", "reboot", "for ever", false), nil)
	if n := q.sweep(time.Unix(1, 0)); n != 1 {
		t.Errorf("%d swept", n)
	}
	check("swept", "nh/d/down/reboot for ever")
}

// What comes through is what was sent, or nothing: paho reads whole packets of
// bounded size, and after an error no further byte.
func FuzzExternalConn(f *testing.F) {
	pub := func(qos byte, topic string, size int) []byte {
		p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
		p.Qos, p.TopicName, p.MessageID, p.Payload = qos, topic, 7, bytes.Repeat([]byte("x"), size)
		var b bytes.Buffer
		if err := p.Write(&b); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	f.Add([]byte{0x20, 2, 0, 0, 0x90, 4, 0, 1, 1, 1, 0xd0, 0, 0x40, 2, 0, 7})
	f.Add(append(pub(1, "nh/d1/up/hello", 5), pub(0, "nh/d1/up/log", 0)...))
	f.Add(append(pub(1, "nh/d1/up/log", externalMaxPacket), pub(1, "nh/d1/up/log", 3)...))
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0, 2, 'a', 'b'})
	f.Add([]byte{0x32, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff})
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Add([]byte{0x90, 9, 0, 1, 1, 1, 1, 1, 1, 1, 1})
	f.Add([]byte{0xe0, 0})
	f.Fuzz(func(t *testing.T, sent []byte) {
		conn := newExternalConn(externalReader{bytes.NewReader(sent)}, externalReader{})
		conn.filters.Store(2)
		var publishes uint64
		in := bytes.NewReader(sent)
		for {
			got, err := packets.ReadPacket(conn)
			if err != nil {
				if _, again := conn.Read(make([]byte, 1)); conn.failed() != nil && again == nil {
					t.Fatal("bytes after an error")
				}
				return
			}
			want, err := packets.ReadPacket(in)
			if err != nil {
				t.Fatalf("%v out of nothing: %v", got, err)
			}
			g, ok := got.(*packets.PublishPacket)
			if !ok {
				if got.String() != want.String() {
					t.Fatalf("got %v, want %v", got, want)
				}
				continue
			}
			publishes++
			w := want.(*packets.PublishPacket)
			payload := w.Payload
			if conn.large(publishes) {
				payload = nil
			} else if len(payload) > externalMaxPacket {
				t.Fatalf("%d bytes let through", len(payload))
			}
			if g.TopicName != w.TopicName || g.MessageID != w.MessageID || g.Qos != w.Qos || g.Retain != w.Retain || !bytes.Equal(g.Payload, payload) {
				t.Fatalf("got %v, want %v", g, w)
			}
		}
	})
}

// externalReader is a connection that can only be read.
type externalReader struct{ *bytes.Reader }

var _ net.Conn = externalReader{}

func (externalReader) Write(p []byte) (int, error)      { return len(p), nil }
func (externalReader) Close() error                     { return nil }
func (externalReader) LocalAddr() net.Addr              { return nil }
func (externalReader) RemoteAddr() net.Addr             { return nil }
func (externalReader) SetDeadline(time.Time) error      { return nil }
func (externalReader) SetReadDeadline(time.Time) error  { return nil }
func (externalReader) SetWriteDeadline(time.Time) error { return nil }
