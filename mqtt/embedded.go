package mqtt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"runtime/debug"
	"sync"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// EmbeddedConfig is what an embedded broker is made of. Topics and Listener
// are needed; every other zero value takes the default it names.
type EmbeddedConfig struct {
	Topics   Topics
	Listener net.Listener // opened by the caller, closed by Run
	Log      *slog.Logger // default: slog.Default()

	MaxDevices int // connected at a time; default 10000
	MaxSockets int // before CONNECT or after; default MaxDevices + 1024; at most half the open files
	MaxPerIP   int // sockets from one address, loopback aside; default MaxDevices: behind NAT all have one
	MaxPacket  int // largest packet a device may publish, bytes; default 64 KiB

	ConnectTimeout time.Duration // from accept to CONNECT; default 10 s
	WriteTimeout   time.Duration // one write to a device that does not read; default 5 s
	IdleTimeout    time.Duration // silence of a device with keepalive 0; default 1 h
}

// withDefaults fits c to a process that may have so many open files.
func (c EmbeddedConfig) withDefaults(files int) EmbeddedConfig {
	c.Log = cmp.Or(c.Log, slog.Default())
	c.MaxDevices = cmp.Or(c.MaxDevices, 10000)
	c.MaxSockets = cmp.Or(c.MaxSockets, c.MaxDevices+1024)
	c.MaxSockets = min(c.MaxSockets, roomFor(files))
	c.MaxPerIP = cmp.Or(c.MaxPerIP, min(c.MaxDevices, c.MaxSockets))
	c.MaxPacket = cmp.Or(c.MaxPacket, 64<<10)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 10*time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 5*time.Second)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, time.Hour)
	return c
}

// Embedded is a Bus that is itself the broker.
//
// mochi reads packets, answers them and keeps the MQTT state of what a device
// publishes. What goes down to a device is not published through mochi, whose
// queues lose, reorder and block: each connection has a worker that writes
// from a mailbox of its own.
type Embedded struct {
	topics     Topics
	maxDevices int
	maxPacket  int
	log        *slog.Logger // about the broker
	noise      *slog.Logger // about what devices do
	srv        *mochi.Server
	ln         *listener
	h          Handler // set by Run before the first connection
	lost       tally

	mu       sync.Mutex // guards what follows, and all mailboxes; never held over I/O, a channel or the Handler
	started  bool
	closing  bool
	sessions int                 // mailboxes with a session
	boxes    map[string]*mailbox // by device: connected, or with retained messages
	shared   map[string]letter   // retained messages about the gateway itself, by topic
}

var _ Bus = (*Embedded)(nil)

// errNotServing is Health.Err before Run and after it.
var errNotServing = errors.New("mqtt: broker is not running")

// NewEmbedded returns a broker that Run will serve on c.Listener.
func NewEmbedded(c EmbeddedConfig) (*Embedded, error) {
	if c.Listener == nil {
		return nil, errors.New("mqtt: embedded broker without a listener")
	}
	if !validTopic(c.Topics.Prefix) || c.Topics.Prefix[0] == '$' {
		return nil, fmt.Errorf("mqtt: prefix %q is no topic", c.Topics.Prefix)
	}
	c = c.withDefaults(openFiles())
	e := &Embedded{
		topics: c.Topics, maxDevices: c.MaxDevices, maxPacket: c.MaxPacket,
		log: c.Log, noise: newGuardedLog(c.Log),
		boxes: map[string]*mailbox{}, shared: map[string]letter{},
	}
	e.ln = newListener(c.Listener, c.Log, limits{
		sockets: c.MaxSockets, perIP: c.MaxPerIP,
		connect: c.ConnectTimeout, write: c.WriteTimeout, idle: c.IdleTimeout,
	})
	e.ln.finished, e.ln.panicked, e.ln.refused = e.finish, e.panicked, e.turnedAway
	e.srv = mochi.New(&mochi.Options{
		Capabilities:            e.capabilities(),
		Logger:                  newGuardedLog(c.Log),
		ClientNetReadBufferSize: 1 << 10, ClientNetWriteBufferSize: 1 << 10,
		SysTopicResendInterval: 365 * 24 * 3600, // seconds; no device may read $SYS
	})
	if err := e.srv.AddHook(&brokerHook{e: e}, nil); err != nil {
		return nil, fmt.Errorf("mqtt: embedded broker: %w", err)
	}
	if err := e.srv.AddListener(e.ln); err != nil {
		return nil, fmt.Errorf("mqtt: embedded broker: %w", err)
	}
	return e, nil
}

func (e *Embedded) capabilities() *mochi.Capabilities {
	c := mochi.NewDefaultServerCapabilities()
	c.MaximumClients = math.MaxInt64   // counted in claim, where a takeover is no further client
	c.MaximumMessageExpiryInterval = 0 // never expire what the gateway did not ask to
	c.MaximumSessionExpiryInterval = 0 // no sessions
	c.MaximumClientWritesPending = 1   // of mochi's own queue, which stays empty
	c.MaximumPacketSize = uint32(e.maxPacket)
	c.ReceiveMaximum = 32
	c.MaximumInflight = 64
	c.TopicAliasMaximum = 0
	c.SharedSubAvailable = 0
	c.MinimumProtocolVersion = 4
	c.Compatibilities.NoInheritedPropertiesOnAck = true
	return c
}

// Run implements [Bus]. It may be called once. It fails if the listener is
// closed under it, or if a connection does not end in time.
func (e *Embedded) Run(ctx context.Context, h Handler) error {
	e.mu.Lock()
	again := e.started
	e.started = true
	e.mu.Unlock()
	if again {
		return errors.New("mqtt: embedded broker was run before")
	}
	e.h = h
	warnOfFiles(e.log, openFiles(), e.maxDevices)
	if err := e.srv.Serve(); err != nil {
		return fmt.Errorf("mqtt: embedded broker: %w", err)
	}
	select {
	case <-ctx.Done():
		return e.shutdown()
	case <-e.ln.over:
		return errors.Join(e.ln.failure(), e.shutdown())
	}
}

// How long shutdown waits: for the goodbyes, and then for what is left.
const (
	shutdownPolite = 3 * goodbye
	shutdownForced = 2 * time.Second
)

// shutdown tells every device, closes every socket and waits for all of it.
func (e *Embedded) shutdown() error {
	e.mu.Lock()
	e.closing = true
	e.mu.Unlock()
	e.ln.stop()
	<-e.ln.over
	ended := make(chan struct{})
	go func() { e.ln.running.Wait(); close(ended) }()
	for _, s := range e.ln.all() {
		if ss := s.session.Load(); ss != nil {
			e.end(ss, packets.ErrServerShuttingDown)
		} else {
			_ = s.Close()
		}
	}
	if !waitFor(ended, shutdownPolite) {
		for _, s := range e.ln.all() {
			_ = s.Close()
		}
		if !waitFor(ended, shutdownForced) {
			return fmt.Errorf("mqtt: %d connections did not end", len(e.ln.all()))
		}
	}
	return e.srv.Close() // has nothing left to wait for
}

func waitFor(c <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c:
		return true
	case <-timer.C:
		return false
	}
}

// Publish implements [Bus]. The payload must not be changed afterwards. It
// returns [ErrTopic], [ErrExpired], [ErrOffline] once Run has ended, and for a
// device [ErrAbsent], [ErrTooLarge] or [ErrQueueFull], which also meets a
// 65th retained name.
//
// A command for a connected device waits until the device has subscribed to it.
// If it expires first it is dropped, and so it is if the device leaves before
// it has acknowledged it; both are counted. A device that connects again before
// its old connection ended has not left.
func (e *Embedded) Publish(m Message) error {
	topic := e.topics.Of(m)
	if !validTopic(topic) || m.Name == "" || m.Device != "" && !ValidID(m.Device) {
		return fmt.Errorf("%w: %q", ErrTopic, topic)
	}
	l := letter{topic: topic, payload: m.Payload, expires: m.Expires, qos: 1, state: m.Retain}
	if m.Device != "" && m.Name == "fw" {
		l.qos = 0
	}
	now := time.Now()
	if expired(m.Expires, now) {
		e.lost.add("expired")
		return ErrExpired
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		e.lost.add("offline")
		return ErrOffline
	}
	if m.Device == "" {
		return e.publishShared(l, now)
	}
	return e.publishDevice(m.Device, l, now)
}

// publishShared is called with mu held.
func (e *Embedded) publishShared(l letter, now time.Time) error {
	if l.state {
		if err := store(e.shared, l); err != nil {
			e.lost.add("queue_full")
			return err
		}
	}
	for _, b := range e.boxes {
		if _, covered := b.cover(l.topic); !covered || b.session == nil {
			continue
		}
		if b.push(l, now) != nil {
			e.lost.add("queue_full")
		}
		b.session.poke()
	}
	return nil
}

// publishDevice is called with mu held.
func (e *Embedded) publishDevice(device string, l letter, now time.Time) error {
	b := e.boxes[device]
	online := b != nil && b.open
	if !online && !l.state {
		e.lost.add("absent")
		return ErrAbsent
	}
	if online && b.session.tooLarge(l) {
		e.lost.add("too_large")
		return ErrTooLarge
	}
	if b == nil {
		b = e.newMailbox(device)
	}
	if l.state {
		if err := store(b.retained, l); err != nil {
			e.lost.add("queue_full")
			return err
		}
		e.release(device, b)
	}
	if !online {
		return nil
	}
	if err := b.push(l, now); err != nil {
		e.lost.add("queue_full")
		return err
	}
	b.session.poke()
	return nil
}

// newMailbox is called with mu held.
func (e *Embedded) newMailbox(device string) *mailbox {
	if len(e.boxes) >= boxesPerDevice*e.maxDevices {
		e.forgetAbsent()
	}
	b := &mailbox{retained: map[string]letter{}, shared: e.shared, lost: &e.lost}
	e.boxes[device] = b
	return b
}

// boxesPerDevice bounds the mailboxes of devices that are away: whoever may
// connect could otherwise leave one behind for each name it makes up.
const boxesPerDevice = 2

// forgetAbsent drops the mailbox of a device that is away. It is called with mu
// held.
func (e *Embedded) forgetAbsent() {
	for device, b := range e.boxes { // in no order; at least half are away
		if b.session == nil {
			delete(e.boxes, device)
			e.lost.add("forgotten")
			return
		}
	}
}

// release forgets a mailbox with nothing in it. It is called with mu held.
func (e *Embedded) release(device string, b *mailbox) {
	if b.idle() {
		delete(e.boxes, device)
	}
}

// Health implements [Bus]. The reasons of Dropped are absent, acl, expired,
// forgotten (the state of one absent device too many), offline, panic, queue_full, retained, too_large and unsubscribed. acl counts
// refused subscriptions, too; panic, packets that were too much for the decoder
// or the Handler; unsubscribed, commands a full queue dropped because a device
// that has subscribed did not subscribe to them.
func (e *Embedded) Health() Health {
	h := Health{Err: e.ln.failure(), Dropped: e.lost.all()}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.started || e.closing {
		h.Err = errNotServing
	}
	for _, b := range e.boxes {
		if b.open {
			h.Devices++
		}
	}
	return h
}

// contain is deferred where a panic is to cost one connection and no more.
func (e *Embedded) contain() {
	if r := recover(); r != nil {
		e.panicked(r, debug.Stack())
	}
}

// panicked is called by the listener, too.
func (e *Embedded) panicked(what any, stack []byte) {
	if e.lost.add("panic") == 1 {
		e.log.Error("mqtt: a packet was too much, its connection was closed; further ones are only counted",
			"panic", what, "stack", string(stack))
	}
}

// turnedAway is called by the listener.
func (e *Embedded) turnedAway(remote string, why error) {
	e.noise.Warn("mqtt: socket turned away", "remote", remote, "err", why)
}

// A tally counts lost messages by reason. Its zero value is ready.
type tally struct {
	mu sync.Mutex // guards n
	n  map[string]uint64
}

// add counts one more and returns how many there were.
func (t *tally) add(reason string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = map[string]uint64{}
	}
	t.n[reason]++
	return t.n[reason]
}

func (t *tally) all() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.n)
}
