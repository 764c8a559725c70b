package gateway_test

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"ganglion/internal/memnet"
)

// A rivalBroker is a foreign broker of MQTT 3.1.1, as far as gateways without
// devices need one: wills, retained messages, sessions that outlive their
// connection, and topics without wildcards.
type rivalBroker struct {
	*memnet.Listener
	wg sync.WaitGroup

	mu       sync.Mutex // guards the rest
	sessions map[string]*rivalSession
	retained map[string][]byte
	history  []string // every payload published
	holding  bool     // what is published waits
	held     []func() // for release
}

type rivalSession struct {
	conn   net.Conn        // nil while its client is away
	subs   map[string]byte // QoS by topic
	queued [][]byte        // for an absent client
}

func newRivalBroker(t *testing.T) *rivalBroker {
	b := &rivalBroker{Listener: memnet.Listen(), sessions: map[string]*rivalSession{}, retained: map[string][]byte{}}
	b.wg.Go(func() {
		for {
			conn, err := b.Accept()
			if err != nil {
				return
			}
			b.wg.Go(func() { b.serve(conn) })
		}
	})
	t.Cleanup(func() { b.Close(); b.wg.Wait() })
	return b
}

// packet reads one (§2.2).
func packet(r *bufio.Reader) (first byte, body []byte, err error) {
	if first, err = r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(r) // the same encoding as §2.2.3
	if err != nil {
		return 0, nil, err
	}
	body = make([]byte, n)
	_, err = io.ReadFull(r, body)
	return first, body, err
}

// field takes a length and as many bytes off the front (§1.5.3).
func field(body *[]byte) []byte {
	n := int(binary.BigEndian.Uint16(*body))
	f := (*body)[2 : 2+n]
	*body = (*body)[2+n:]
	return f
}

func (b *rivalBroker) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	_, body, err := packet(r)
	if err != nil {
		return
	}
	body = body[10:] // protocol name, level, flags, keep alive (§3.1.2)
	id, topic, will := string(field(&body)), string(field(&body)), field(&body)
	s := b.connect(id, conn)
	for {
		first, body, err := packet(r)
		clean := err == nil && first>>4 == 14
		if err != nil || clean {
			b.gone(s, conn)
			if !clean {
				b.publish(topic, will, true)
			}
			return
		}
		b.take(s, conn, first, body)
	}
}

func (b *rivalBroker) connect(id string, conn net.Conn) *rivalSession {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, present := b.sessions[id]
	if !present {
		s = &rivalSession{subs: map[string]byte{}}
		b.sessions[id] = s
	}
	s.conn = conn
	answer := []byte{0x20, 2, 0, 0}
	if present {
		answer[2] = 1
	}
	conn.Write(answer)
	for _, p := range s.queued {
		conn.Write(p)
	}
	s.queued = nil
	return s
}

func (b *rivalBroker) gone(s *rivalSession, conn net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.conn == conn {
		s.conn = nil
	}
}

func (b *rivalBroker) take(s *rivalSession, conn net.Conn, first byte, body []byte) {
	switch first >> 4 {
	case 3: // PUBLISH
		topic := string(field(&body))
		if first&0x06 != 0 {
			defer conn.Write([]byte{0x40, 2, body[0], body[1]})
			body = body[2:]
		}
		b.publish(topic, body, first&1 == 1)
	case 8: // SUBSCRIBE
		b.mu.Lock()
		defer b.mu.Unlock()
		answer := []byte{0x90, 0, body[0], body[1]}
		for body = body[2:]; len(body) > 0; body = body[1:] {
			topic := string(field(&body))
			s.subs[topic] = body[0]
			answer = append(answer, body[0])
			if payload, ok := b.retained[topic]; ok {
				defer conn.Write(publication(topic, payload, body[0], true))
			}
		}
		answer[1] = byte(len(answer) - 2)
		conn.Write(answer)
	case 12: // PINGREQ
		conn.Write([]byte{0xd0, 0})
	}
}

// publication is a PUBLISH of fewer than 128 bytes.
func publication(topic string, payload []byte, qos byte, retained bool) []byte {
	p := []byte{0x30 | qos<<1, 0, 0, byte(len(topic))}
	if retained {
		p[0] |= 1
	}
	p = append(p, topic...)
	if qos > 0 {
		p = append(p, 0x7f, 1)
	}
	p = append(p, payload...)
	p[1] = byte(len(p) - 2)
	return p
}

// publish is what anybody does.
func (b *rivalBroker) publish(topic string, payload []byte, retain bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.history = append(b.history, string(payload))
	if b.holding {
		b.held = append(b.held, func() { b.spread(topic, payload, retain) })
		return
	}
	b.spread(topic, payload, retain)
}

// hold keeps what is published to itself until release, as a slow broker would.
func (b *rivalBroker) hold() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holding = true
}

func (b *rivalBroker) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holding = false
	for _, spread := range b.held {
		spread()
	}
	b.held = nil
}

// spread hands on what was published, under mu.
func (b *rivalBroker) spread(topic string, payload []byte, retain bool) {
	if retain {
		b.retained[topic] = payload
		if len(payload) == 0 {
			delete(b.retained, topic)
		}
	}
	for _, s := range b.sessions {
		qos, wants := s.subs[topic]
		switch {
		case wants && s.conn != nil:
			s.conn.Write(publication(topic, payload, qos, false))
		case wants && qos > 0:
			s.queued = append(s.queued, publication(topic, payload, qos, false))
		}
	}
}

// says is what <prefix>/gateway says, and how often anything was published.
func (b *rivalBroker) says() (string, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.retained["nh/gateway"]), len(b.history)
}
