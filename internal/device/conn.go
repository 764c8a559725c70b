package device

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	dialLimit  = 10 * time.Second // for the dial, then for CONNACK
	writeLimit = 10 * time.Second
	readBuffer = 512 // bytes
)

// connackReasons are the refusals of MQTT 3.1.1 §3.2.2.3, by return code.
var connackReasons = []string{1: "unacceptable protocol version", 2: "identifier rejected", 3: "server unavailable",
	4: "bad user name or password", 5: "not authorized"}

// A conn is one accepted MQTT connection. Its one goroutine reads; all else is
// the device's loop.
type conn struct {
	net   net.Conn
	ctx   context.Context
	limit int // bytes of the largest packet in either direction

	in     chan inbound  // unbuffered: a loop that does not take stops the reading, as TCP stops the broker
	closed chan struct{} // ends the reader's wait for the loop
	reader sync.WaitGroup

	wrote time.Time // owned by the device's loop
}

// inbound is a packet, or why there are no more.
type inbound struct {
	packet packet
	err    error
}

// connect dials, says CONNECT and waits for the broker to accept.
func connect(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), addr string, l login, limit int) (*conn, error) {
	dialing, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	raw, err := dial(dialing, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &conn{net: raw, ctx: ctx, limit: limit, in: make(chan inbound), closed: make(chan struct{})}
	// The end of ctx ends a wait for the broker, here and in write.
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Now().Add(time.Second)) })
	defer stop()
	raw.SetReadDeadline(time.Now().Add(dialLimit))
	buffered := bufio.NewReaderSize(raw, readBuffer)
	if err := c.handshake(buffered, l); err != nil {
		raw.Close()
		return nil, err
	}
	raw.SetReadDeadline(time.Time{})
	c.reader.Go(func() { c.read(buffered) })
	return c, nil
}

func (c *conn) handshake(r *bufio.Reader, l login) error {
	if err := c.write(connectPacket(l)); err != nil {
		return err
	}
	p, err := readPacket(r, c.limit)
	switch {
	case err != nil:
		return fmt.Errorf("waiting for CONNACK: %w", err)
	case p.kind != typeConnack: // [MQTT-3.2.0-1]
		return fmt.Errorf("%w: type %d before CONNACK", errMalformed, p.kind)
	case p.codes[0] == 0:
		return nil
	case int(p.codes[0]) < len(connackReasons):
		return errors.New("refused: " + connackReasons[p.codes[0]])
	}
	return fmt.Errorf("refused with return code %d", p.codes[0])
}

func (c *conn) read(r *bufio.Reader) {
	for {
		p, err := readPacket(r, c.limit)
		select {
		case c.in <- inbound{p, err}:
		case <-c.closed:
			return
		}
		if err != nil {
			return
		}
	}
}

// write sends one packet. After an error the connection is to be closed.
func (c *conn) write(b []byte) error {
	if len(b) > c.limit {
		return fmt.Errorf("packet of %d bytes, the limit is %d", len(b), c.limit)
	}
	return c.send(b)
}

func (c *conn) send(b []byte) error {
	limit := writeLimit
	if c.ctx.Err() != nil {
		limit = time.Second
	}
	c.net.SetWriteDeadline(time.Now().Add(limit))
	stop := context.AfterFunc(c.ctx, func() { c.net.SetWriteDeadline(time.Now().Add(time.Second)) })
	defer stop()
	_, err := c.net.Write(b)
	c.wrote = time.Now()
	return err
}

// close ends the connection and waits for the reader. A polite end says
// DISCONNECT first, so that the broker does not publish the will
// (MQTT 3.1.1 §3.14.4).
func (c *conn) close(polite bool) {
	if polite {
		c.write(disconnectPacket()) // the connection ends either way
	}
	c.net.Close()
	close(c.closed)
	c.reader.Wait()
}
