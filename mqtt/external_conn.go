package mqtt

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// externalWrite is how long one write to the broker may take. With what Run
// does at its end it must stay under 5 s.
const externalWrite = 3 * time.Second

var (
	errExternalPeer     = errors.New("the broker closed the connection")
	errExternalSilent   = errors.New("the broker does not answer")
	errExternalEnded    = errors.New("connection ended")
	errExternalProtocol = errors.New("the broker broke the protocol")
)

// dial opens the transport to the broker: TCP, or TLS over it.
func (e *External) dial(ctx context.Context) (*externalConn, error) {
	ctx, cancel := context.WithTimeout(ctx, externalDial)
	defer cancel()
	raw, err := e.c.Dial(ctx, "tcp", e.broker.Host)
	if err != nil {
		return nil, err
	}
	conn, err := e.wrap(ctx, raw)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return newExternalConn(conn, raw), nil
}

func (e *External) wrap(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if e.broker.Scheme == "mqtt" {
		return conn, nil
	}
	config := &tls.Config{}
	if e.c.TLS != nil {
		config = e.c.TLS.Clone()
	}
	if config.ServerName == "" {
		config.ServerName = e.broker.Hostname()
	}
	secure := tls.Client(conn, config)
	return secure, secure.HandshakeContext(ctx)
}

// externalConn stands between paho and the network. It checks the length every
// packet announces before paho allocates it, shortens a PUBLISH that is too
// large to its topic, bounds every write, and ends with the reason it was
// given: paho takes a plain close of its own socket for no event at all.
type externalConn struct {
	net.Conn          // what MQTT is spoken over
	raw      net.Conn // the socket below it
	filters  atomic.Int32
	quiet    atomic.Bool  // DISCONNECT was sent, nothing may follow (§3.14.4-2)
	patience atomic.Int64 // how long a write may take

	// Owned by the reader.
	in        *bufio.Reader
	head      []byte // checked and not yet handed on
	left      int    // bytes of the packet after head
	publishes uint64

	mu     sync.Mutex // guards what follows
	why    error      // set once, by fail
	larges map[uint64]struct{}
}

func newExternalConn(conn, raw net.Conn) *externalConn {
	c := &externalConn{Conn: conn, raw: raw, in: bufio.NewReader(conn), larges: map[uint64]struct{}{}}
	c.patience.Store(int64(externalWrite))
	return c
}

// Read hands on checked packets only, and nothing after an error.
func (c *externalConn) Read(p []byte) (int, error) {
	if err := c.failed(); err != nil {
		return 0, err
	}
	if len(c.head) == 0 && c.left == 0 {
		if err := c.next(); err != nil {
			return 0, c.fail(err)
		}
	}
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	n, err := c.in.Read(p[:min(len(p), c.left)])
	c.left -= n
	if err != nil {
		return n, c.fail(err)
	}
	return n, nil
}

// next reads a fixed header (§2.2) and decides about the packet.
func (c *externalConn) next() error {
	first, err := c.in.ReadByte()
	if err != nil {
		return err
	}
	length, shift := 0, 0
	c.head = append(c.head[:0], first)
	for {
		b, err := c.in.ReadByte()
		if err != nil {
			return err
		}
		c.head = append(c.head, b)
		length |= int(b&0x7f) << shift
		if b < 0x80 {
			break
		}
		if shift += 7; shift > 21 { // a fifth byte (§2.2.3)
			return fmt.Errorf("%w: length of a packet", errExternalProtocol)
		}
	}
	if err := c.check(first, length); err != nil {
		return err
	}
	c.left = length
	if first>>4 != 3 {
		return nil
	}
	c.publishes++
	if len(c.head)+length > externalMaxPacket {
		return c.shorten(first, length)
	}
	return nil
}

// check knows how long each packet a server sends may be, and which it may
// send at all. paho trusts the count of SUBACK's answers.
func (c *externalConn) check(first byte, length int) error {
	want := 2
	switch first >> 4 {
	case 2, 4, 5, 6, 7, 11: // CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, UNSUBACK
	case 9: // SUBACK (§3.9.3)
		want = 2 + int(c.filters.Load())
	case 13: // PINGRESP
		want = 0
	case 3: // PUBLISH; QoS 3 does not exist (§3.3.1-4)
		if first&0x06 == 0x06 || length < 2 {
			return fmt.Errorf("%w: PUBLISH", errExternalProtocol)
		}
		return nil
	case 14: // some brokers send MQTT 5's DISCONNECT before they close
		return errExternalPeer
	default:
		return fmt.Errorf("%w: packet type %d", errExternalProtocol, first>>4)
	}
	if length != want {
		return fmt.Errorf("%w: packet type %d of %d bytes", errExternalProtocol, first>>4, length)
	}
	return nil
}

// shorten makes an empty PUBLISH of one too large to hold, so that it can be
// refused and acknowledged: unacknowledged, one device's message would come
// again with every connection and end it.
func (c *externalConn) shorten(first byte, length int) error {
	var size [2]byte
	if _, err := io.ReadFull(c.in, size[:]); err != nil {
		return err
	}
	keep := int(binary.BigEndian.Uint16(size[:])) // the topic
	if first&0x06 != 0 {
		keep += 2 // the packet identifier
	}
	if 2+keep > length {
		return fmt.Errorf("%w: PUBLISH", errExternalProtocol)
	}
	c.head = append(c.head[:0], first)
	c.head = binary.AppendUvarint(c.head, uint64(2+keep)) // the same encoding as §2.2.3
	c.head = append(c.head, size[:]...)
	rest := make([]byte, keep)
	if _, err := io.ReadFull(c.in, rest); err != nil {
		return err
	}
	c.head = append(c.head, rest...)
	c.left = 0
	c.mu.Lock()
	c.larges[c.publishes] = struct{}{}
	c.mu.Unlock()
	_, err := io.CopyN(io.Discard, c.in, int64(length-2-keep))
	return err
}

// large reports, once, whether the nth PUBLISH was shortened.
func (c *externalConn) large(n uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.larges[n]
	delete(c.larges, n)
	return ok
}

// Write takes at most externalWrite, or what hurry said.
func (c *externalConn) Write(p []byte) (int, error) {
	if c.quiet.Load() {
		return len(p), nil
	}
	if err := c.Conn.SetWriteDeadline(time.Now().Add(time.Duration(c.patience.Load()))); err != nil {
		return 0, c.fail(err)
	}
	n, err := c.Conn.Write(p)
	if err != nil {
		return n, c.fail(err)
	}
	return n, nil
}

// SetWriteDeadline does nothing: Write sets its own, and paho would lift it
// while another write is under way.
func (c *externalConn) SetWriteDeadline(time.Time) error { return nil }

// Close ends the connection without a word.
func (c *externalConn) Close() error {
	c.end(errExternalEnded)
	return nil
}

// end closes the socket; reads and writes then fail with why, unless they did
// before.
func (c *externalConn) end(why error) {
	c.fail(why)
	c.raw.Close()
}

// hurry gives writes, one under way included, no more than limit.
func (c *externalConn) hurry(limit time.Duration) {
	c.patience.Store(int64(limit))
	_ = c.Conn.SetWriteDeadline(time.Now().Add(limit))
}

// disconnect sends DISCONNECT after acks, and nothing after it.
func (c *externalConn) disconnect(acks []byte) {
	c.quiet.Store(true)
	_ = c.Conn.SetWriteDeadline(time.Now().Add(time.Duration(c.patience.Load())))
	_, _ = c.Conn.Write(append(acks, 0xe0, 0))
}

// fail notes err, if it is the first, and returns the first.
func (c *externalConn) fail(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		err = errExternalPeer
	case errors.Is(err, net.ErrClosed):
		err = errExternalEnded
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why == nil {
		c.why = err
	}
	return c.why
}

// failed is what fail was told first.
func (c *externalConn) failed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}
