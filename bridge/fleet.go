// Package bridge joins the two sides: for every device on the Bus it holds a
// Session with NervesHub and carries events between them, as the contract in
// contract.go says.
//
// It must not know how MQTT or TLS work, where credentials come from, or how
// its own configuration is written down.
package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"ganglion/identity"
	"ganglion/mqtt"
	"ganglion/phoenix"
)

// Config is how a Fleet reaches NervesHub and treats its devices.
type Config struct {
	URL       string          // of the device socket, without vsn
	TLS       *tls.Config     // roots for NervesHub's certificate; cloned for every dial
	Identity  identity.Source // unless the device's Class has its own
	Heartbeat time.Duration   // 0: 30 s
	Dials     float64         // handshakes begun per second by the whole gateway; 0: 5
	Devices   int             // most devices at once; 0: 10,000. As many again may linger
	Prefix    string          // of the topics
	Class     func(device string) Class
	Log       *slog.Logger
	UserAgent string
	NetDial   func(ctx context.Context, network, addr string) (net.Conn, error) // nil: a net.Dialer
	Jitter    func() float64                                                    // uniform in [0, 1); nil: math/rand
}

// A Class is how a kind of device is treated.
type Class struct {
	Name                            string
	Linger                          time.Duration // how long an absent device stays joined
	CommandTTL                      time.Duration // how long a command waits for its device
	Reschedule                      time.Duration // the delay of a rescheduled status that names none
	Product, Platform, Architecture string        // what a short hello leaves out
	Identity                        identity.Source
}

// openDials bounds the handshakes that are under way at once: each costs a
// large stack and some milliseconds of a core.
const openDials = 64

// errClosing leaves publishes unacknowledged while the gateway ends.
var errClosing = errors.New("bridge: the gateway is closing")

// errFull turns a device away.
var errFull = fmt.Errorf("%w: there are too many devices", mqtt.ErrBusy)

// A Fleet is the devices that are around. It implements [mqtt.Handler].
type Fleet struct {
	cfg   Config
	bus   mqtt.Bus
	log   *slog.Logger
	turns chan struct{} // one is handed out for each dial, at Config.Dials
	open  chan struct{} // a place for each handshake under way
	ctx   context.Context
	close context.CancelFunc // ends every Session
	wg    sync.WaitGroup     // Sessions and their links

	counters counters
	full     sync.Once // to say it

	mu       sync.Mutex // guards only what follows; a Session guards itself
	closing  bool
	sessions map[string]*Session
	left     map[string]memory // devices that left; at most cfg.Devices, any gives way
}

var _ mqtt.Handler = (*Fleet)(nil)

// New returns a Fleet that publishes on bus.
func New(c Config, bus mqtt.Bus) *Fleet {
	if c.Heartbeat == 0 {
		c.Heartbeat = 30 * time.Second
	}
	if c.Dials == 0 {
		c.Dials = 5
	}
	if c.Devices == 0 {
		c.Devices = 10000
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Class == nil {
		c.Class = func(string) Class {
			return Class{Name: "default", Linger: 30 * time.Second, CommandTTL: time.Minute, Reschedule: time.Hour}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Fleet{cfg: c, bus: bus, log: c.Log, turns: make(chan struct{}), open: make(chan struct{}, openDials), ctx: ctx, close: cancel,
		sessions: map[string]*Session{}, left: map[string]memory{}}
}

// Run returns when ctx has ended and every Session has said what it had to say
// and closed its link.
func (f *Fleet) Run(ctx context.Context) error {
	f.wg.Go(f.handOutTurns)
	<-ctx.Done()
	f.mu.Lock()
	f.closing = true
	f.mu.Unlock()
	f.close()
	f.wg.Wait()
	return nil
}

// handOutTurns paces the dials of the whole gateway. A turn goes to whoever has
// waited longest and still waits.
func (f *Fleet) handOutTurns() {
	pace := rate.NewLimiter(rate.Limit(f.cfg.Dials), max(1, int(f.cfg.Dials/10)))
	for pace.Wait(f.ctx) == nil {
		select {
		case f.turns <- struct{}{}:
		case <-f.ctx.Done():
		}
	}
}

// Online implements [mqtt.Handler].
func (f *Fleet) Online(device string, c mqtt.Client) {
	f.post(device, input{kind: online, client: c})
}

// Offline implements [mqtt.Handler].
func (f *Fleet) Offline(device string) {
	f.mu.Lock()
	s := f.sessions[device]
	f.mu.Unlock()
	if s != nil {
		s.inbox.put(input{kind: offline})
	}
}

// Received implements [mqtt.Handler]. It returns an error for a durable publish
// that could not be taken, and while the gateway ends.
func (f *Fleet) Received(device, name string, payload []byte) error {
	return f.post(device, input{kind: published, name: name, payload: payload})
}

// Refused implements [mqtt.Handler].
func (f *Fleet) Refused(device, name string, why error) {
	f.post(device, input{kind: refused, name: name, why: why})
}

// post hands in to the device's Session, which it begins if there is none.
func (f *Fleet) post(device string, in input) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return errClosing
	}
	s := f.sessions[device]
	if s == nil {
		if len(f.sessions) >= 2*f.cfg.Devices {
			f.counters.add(count{dropped, "fleet_full"})
			f.full.Do(func() {
				f.log.Warn("too many devices; further ones are turned away until some have left", "device", device, "devices", f.cfg.Devices)
			})
			return errFull
		}
		s = f.newSession(device)
		f.sessions[device] = s
		f.wg.Go(func() { s.run(f.ctx) })
	}
	lost, err := s.inbox.put(in) // a short lock of its own, no I/O
	if lost != "" {
		f.counters.add(count{dropped, lost})
	}
	return err
}

func (f *Fleet) newSession(device string) *Session {
	s := &Session{fleet: f, inbox: newInbox()}
	class := f.cfg.Class(device)
	s.core = core{device: device, class: class, prefix: len(f.cfg.Prefix), beat: f.cfg.Heartbeat, phase: phase(device, f.cfg.Heartbeat),
		memory: f.left[device], leaveAt: time.Now().Add(class.Linger)} // unless it turns out to be present
	delete(f.left, device)
	s.show(StateWaiting, nil)
	return s
}

// phase spreads the heartbeats: each device has a moment of its own within the
// interval, the same on every connection.
func phase(device string, interval time.Duration) time.Duration {
	h := fnv.New64a()
	h.Write([]byte(device))
	return interval/4 + time.Duration(h.Sum64()%uint64(interval*3/4))
}

// retire takes s off the map, unless something has reached it meanwhile.
func (f *Fleet) retire(s *Session) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !s.inbox.empty() {
		return false
	}
	delete(f.sessions, s.core.device)
	for d := range f.left {
		if len(f.left) < f.cfg.Devices {
			break
		}
		delete(f.left, d)
	}
	f.left[s.core.device] = s.core.memory
	return true
}

// dial connects for device when the gate lets it: so many handshakes a second,
// and so many at once, for the whole gateway.
func (f *Fleet) dial(ctx context.Context, device string, own identity.Source) (*phoenix.Conn, []string, error) {
	select {
	case <-f.turns:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	select {
	case f.open <- struct{}{}:
		defer func() { <-f.open }()
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	source := f.cfg.Identity
	if own != nil {
		source = own
	}
	cred, err := source.Credentials(ctx, device)
	if err != nil {
		return nil, nil, err // it says identity itself
	}
	conn, err := phoenix.Dial(ctx, f.cfg.URL, phoenix.Options{TLS: cred.TLS(f.cfg.TLS), Header: cred.Header,
		NetDial: f.cfg.NetDial, ReadTimeout: 2*f.cfg.Heartbeat + 10*time.Second, UserAgent: f.cfg.UserAgent})
	if refused, ok := errors.AsType[*phoenix.DialError](err); ok {
		if clocked, ok := source.(identity.Clocked); ok {
			if date, ok := refused.Date(); ok {
				clocked.ServerDate(date, time.Now())
			}
		}
	}
	return conn, cred.Notes, err
}
