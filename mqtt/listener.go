package mqtt

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"
)

// A listener accepts sockets for the broker and bounds what each may cost:
// how long it may say nothing, how much it may announce, how long it may keep
// a writer waiting. A decoder that panics ends one socket.
type listener struct {
	nl       net.Listener
	log      *slog.Logger
	limits   limits
	finished func(*socket)       // called once when a socket's goroutine ends
	panicked func(any, []byte)   // called with what a socket's goroutine panicked with
	refused  func(string, error) // called with the remote address of a socket turned away
	closed   chan struct{}       // closed by stop
	over     chan struct{}       // closed when Serve has returned

	running sync.WaitGroup // one per socket

	mu      sync.Mutex // guards what follows
	stopped bool
	err     error // why the last Accept failed, or nil
	sockets map[*socket]struct{}
	perIP   map[string]int
}

// limits are the bounds of a listener; see [EmbeddedConfig].
type limits struct {
	sockets, perIP       int
	connect, write, idle time.Duration
}

var (
	errSockets = errors.New("too many sockets")
	errPerIP   = errors.New("too many sockets from this address")
)

var _ listeners.Listener = (*listener)(nil)

func newListener(nl net.Listener, log *slog.Logger, l limits) *listener {
	return &listener{
		nl: nl, log: log, limits: l,
		closed: make(chan struct{}), over: make(chan struct{}),
		sockets: map[*socket]struct{}{}, perIP: map[string]int{},
	}
}

func (l *listener) ID() string              { return "embedded" }
func (l *listener) Protocol() string        { return l.nl.Addr().Network() }
func (l *listener) Address() string         { return l.nl.Addr().String() }
func (l *listener) Init(*slog.Logger) error { return nil }
func (l *listener) Close(listeners.CloseFn) { l.stop() }
func (l *listener) setErr(err error)        { l.mu.Lock(); l.err = err; l.mu.Unlock() }
func (l *listener) failure() error          { l.mu.Lock(); defer l.mu.Unlock(); return l.err }
func (l *listener) drop(s *socket)          { l.mu.Lock(); defer l.mu.Unlock(); l.forget(s) }

// Serve accepts until stop, or until somebody else closes the net.Listener.
// Any other error, as too many open files, passes: it waits and tries again.
func (l *listener) Serve(establish listeners.EstablishFn) {
	defer close(l.over)
	var wait time.Duration
	for {
		c, err := l.nl.Accept()
		switch {
		case err == nil:
			if wait > 0 {
				l.log.Info("mqtt: accepting again")
			}
			wait = 0
			l.setErr(nil)
			l.serve(c, establish)
			continue
		case errors.Is(err, net.ErrClosed):
			l.setErr(fmt.Errorf("mqtt: accept: %w", err))
			return
		}
		if wait == 0 {
			l.log.Error("mqtt: cannot accept connections, trying on", "err", err)
		}
		l.setErr(fmt.Errorf("mqtt: accept: %w", err))
		wait = min(max(2*wait, 5*time.Millisecond), time.Second)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-l.closed:
			timer.Stop()
			return
		}
	}
}

// serve runs c in a goroutine of its own, or closes it.
func (l *listener) serve(c net.Conn, establish listeners.EstablishFn) {
	raw := c
	if t, ok := c.(*tls.Conn); ok {
		raw = t.NetConn()
	}
	if t, ok := raw.(*net.TCPConn); ok { // a device that lost its power is noticed within 30 s
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3})
	}
	s, err := l.admit(c)
	if err != nil {
		_ = c.Close()
		l.refused(c.RemoteAddr().String(), err)
		return
	}
	l.running.Go(func() { l.run(s, establish) })
}

func (l *listener) admit(c net.Conn) (*socket, error) {
	s := &socket{Conn: c, limits: l.limits}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		s.ip = a.IP.String()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.stopped:
		return nil, net.ErrClosed
	case len(l.sockets) >= l.limits.sockets:
		return nil, errSockets
	case s.ip != "" && l.perIP[s.ip] >= l.limits.perIP:
		return nil, errPerIP
	}
	l.sockets[s] = struct{}{}
	if s.ip != "" {
		l.perIP[s.ip]++
	}
	return s, nil
}

// forget is called with mu held.
func (l *listener) forget(s *socket) {
	delete(l.sockets, s)
	if s.ip == "" {
		return
	}
	if l.perIP[s.ip]--; l.perIP[s.ip] == 0 {
		delete(l.perIP, s.ip)
	}
}

func (l *listener) run(s *socket, establish listeners.EstablishFn) {
	defer func() {
		_ = s.Close()
		l.finished(s)
		l.drop(s)
	}()
	defer func() {
		if r := recover(); r != nil {
			l.panicked(r, debug.Stack())
		}
	}()
	_ = s.Conn.SetDeadline(time.Now().Add(s.limits.connect))
	_ = establish(l.ID(), s) // how a connection ends is no news
}

// stop ends Serve. Sockets live on until they are closed.
func (l *listener) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stopped {
		l.stopped = true
		close(l.closed)
		_ = l.nl.Close()
	}
}

func (l *listener) all() []*socket {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*socket, 0, len(l.sockets))
	for s := range l.sockets {
		all = append(all, s)
	}
	return all
}

// maxConnect is the largest CONNECT, bytes. The broker allocates what a packet
// announces before it has read it, and nobody has said who they are yet.
const maxConnect = 4 << 10

// goodbye is how long a connection that is to end may still be written to.
const goodbye = 500 * time.Millisecond

var errFirstPacket = errors.New("mqtt: first packet is not a CONNECT of at most 4 KiB")

// A socket gives every write a deadline of its own, and looks at the very
// first bytes before the broker allocates for them.
type socket struct {
	net.Conn
	limits  limits
	ip      string // counted in listener.perIP; empty for loopback
	session atomic.Pointer[session]

	// Owned by the goroutine that reads.
	will    *will
	head    []byte // the fixed header as far as it was read
	checked bool

	mu   sync.Mutex // guards what follows
	last time.Time  // no write after; zero: hurry was not called
}

// Read checks the fixed header of the first packet.
func (s *socket) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if s.checked || n == 0 {
		return n, err
	}
	s.head = append(s.head, b[:min(n, 5-len(s.head))]...)
	ok, done := sane(s.head)
	if !ok {
		return 0, errFirstPacket
	}
	if done {
		s.checked, s.head = true, nil
	}
	return n, err
}

// sane reports whether head begins a CONNECT of at most maxConnect bytes, and
// whether it holds the whole fixed header (MQTT 5 §2.1, §1.5.5).
func sane(head []byte) (ok, done bool) {
	if head[0] != 0x10 {
		return false, false
	}
	length := 0
	for i, c := range head[1:] {
		length |= int(c&0x7f) << (7 * i)
		if c&0x80 == 0 {
			return length <= maxConnect, true
		}
	}
	return len(head) < 5, false
}

// certificate is the common name of the client certificate that a TLS listener
// has asked for and verified.
func (s *socket) certificate() (name string, ok bool) {
	t, ok := s.Conn.(*tls.Conn)
	if !ok {
		return "", false
	}
	chains := t.ConnectionState().VerifiedChains
	if len(chains) == 0 {
		return "", false
	}
	return chains[0][0].Subject.CommonName, true
}

// Write waits for the peer at most limits.write. A packet half written cannot
// be continued, so that any error closes the socket.
func (s *socket) Write(b []byte) (int, error) {
	s.mu.Lock()
	at := s.last
	if at.IsZero() {
		at = time.Now().Add(s.limits.write)
	}
	_ = s.Conn.SetWriteDeadline(at)
	s.mu.Unlock()
	n, err := s.Conn.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		_ = s.Conn.Close()
	}
	return n, err
}

// hurry ends every write, one under way included, within goodbye.
func (s *socket) hurry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last.IsZero() {
		s.last = time.Now().Add(goodbye)
		_ = s.Conn.SetWriteDeadline(s.last)
	}
}

// SetDeadline is what mochi calls before it reads a packet, with 1.5 times the
// keepalive. It must not touch the deadline of a write.
func (s *socket) SetDeadline(t time.Time) error {
	if t.IsZero() { // keepalive 0
		t = time.Now().Add(s.limits.idle)
	}
	return s.Conn.SetReadDeadline(t)
}
