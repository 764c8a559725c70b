package memnet

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// bufferSize is how many bytes may wait in one direction of a connection; a
// Write beyond it waits for the reader.
const bufferSize = 256 << 10

// A link is the two ends of one connection and the two pipes between them.
type link struct {
	listener       *Listener
	client, server *conn
	up, down       *pipe        // client to server, and back
	closed         atomic.Int32 // ends that were closed
}

func newLink(l *Listener) *link {
	k := &link{listener: l, up: newPipe(), down: newPipe()}
	addr := newAddr()
	k.client = &conn{link: k, r: k.down, w: k.up, local: addr, remote: l.addr}
	k.server = &conn{link: k, r: k.up, w: k.down, local: l.addr, remote: addr}
	return k
}

func (k *link) reset() {
	k.listener.remove(k)
	k.up.reset()
	k.down.reset()
}

// A conn is one end of a link.
type conn struct {
	link          *link
	r, w          *pipe
	local, remote *net.TCPAddr
	closed        atomic.Bool
}

var _ net.Conn = (*conn)(nil)

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.r.read(b)
	if err != nil && err != io.EOF {
		err = c.fail("read", err)
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.w.write(b)
	if err != nil {
		err = c.fail("write", err)
	}
	return n, err
}

// Close lets the peer read what was written before, and then io.EOF.
func (c *conn) Close() error {
	if !c.closed.Swap(true) && c.link.closed.Add(1) == 2 {
		c.link.listener.remove(c.link)
	}
	c.w.closeWrite()
	c.r.closeRead()
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	c.r.setDeadline(&c.r.reading, t)
	c.w.setDeadline(&c.w.writing, t)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.r.setDeadline(&c.r.reading, t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.w.setDeadline(&c.w.writing, t)
	return nil
}

func (c *conn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// A pipe carries bytes one way. mu guards all of it, and cond is signalled
// whenever something changes that a reader or a writer may be waiting for.
type pipe struct {
	mu               sync.Mutex
	cond             sync.Cond
	buf              bytes.Buffer
	dead             bool  // what is written never arrives
	readErr          error // what a reader gets: io.EOF once buf is empty, others at once
	writeErr         error // what a writer gets
	reading, writing deadline
}

// A deadline wakes whoever waits when it passes; the zero time is none.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func newPipe() *pipe {
	p := new(pipe)
	p.cond.L = &p.mu
	return p
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.readErr != nil && p.readErr != io.EOF:
			return 0, p.readErr
		case p.reading.passed():
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case p.dead:
			// Neither data nor the end of it arrives.
		case p.buf.Len() > 0:
			n, _ := p.buf.Read(b)
			p.cond.Broadcast()
			return n, nil
		case p.readErr != nil:
			return 0, io.EOF
		}
		p.cond.Wait()
	}
}

func (p *pipe) write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.writeErr != nil:
			return n, p.writeErr
		case p.writing.passed():
			return n, os.ErrDeadlineExceeded
		}
		if m := min(len(b), bufferSize-p.buf.Len()); m > 0 {
			p.buf.Write(b[:m])
			n, b = n+m, b[m:]
			p.cond.Broadcast()
		}
		if len(b) == 0 {
			return n, nil
		}
		p.cond.Wait()
	}
}

// closeRead is the reader going away. A writer learns of it unless the two
// have vanished for each other.
func (p *pipe) closeRead() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readErr = net.ErrClosed
	p.reading.stop()
	if p.writeErr == nil && !p.dead {
		p.writeErr = syscall.EPIPE
	}
	p.cond.Broadcast()
}

// closeWrite is the writer going away; a reader still gets what is buffered.
func (p *pipe) closeWrite() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writeErr = net.ErrClosed
	p.writing.stop()
	if p.readErr == nil {
		p.readErr = io.EOF
	}
	p.cond.Broadcast()
}

// reset ends both sides at once, but for one that has closed the pipe itself.
func (p *pipe) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readErr != net.ErrClosed {
		p.readErr = syscall.ECONNRESET
	}
	if p.writeErr != net.ErrClosed {
		p.writeErr = syscall.ECONNRESET
	}
	p.cond.Broadcast()
}

func (p *pipe) blackhole() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
}

func (p *pipe) setDeadline(d *deadline, t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.stop()
	d.at = t
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.cond.Broadcast()
		})
	}
	p.cond.Broadcast()
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}
