package bridge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"ganglion/mqtt"
	"ganglion/phoenix"
)

// A link is what the connection's goroutine has to report, one field at a time.
type link struct {
	conn  *phoenix.Conn // it is up
	notes []string      // about the credentials, with conn or err
	msg   phoenix.Message
	bad   error // a frame that is not a Message; the connection lives on
	err   error // it is down; nothing follows
}

// A Session holds one device's connection to NervesHub for as long as the
// device is around. Its run goroutine owns everything but the inbox and the
// snapshot; while a link is up or coming up one more goroutine dials and reads.
type Session struct {
	fleet    *Fleet
	inbox    *inbox                 // from the Bus
	snapshot atomic.Pointer[Status] // for the page; run stores it

	// Owned by run.
	core    core
	retry   retry
	conn    *phoenix.Conn // nil while the link is down or coming up
	links   chan link
	hangup  context.CancelFunc // ends the link; nil when there is none
	redial  time.Time          // zero while a link exists
	backlog []input            // taken from the inbox and waiting, see core.waits
	notes   []string           // the credentials' last, to log each once
}

// run is the device's life. Four things can happen to it: the device speaks,
// the link reports, time passes, or the gateway lets go.
func (s *Session) run(ctx context.Context) {
	s.links = make(chan link)
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer s.disconnect()
	for {
		timer.Reset(time.Until(s.wake()))
		var fail error
		select {
		case <-ctx.Done():
			s.say()
			return
		case <-s.inbox.wake:
			s.core.now = time.Now()
			s.heard()
		case l := <-s.links:
			s.core.now = time.Now()
			fail = s.linked(l)
		case <-timer.C:
			s.core.now = time.Now()
			fail = s.core.tick()
			s.heard()
		}
		if err := s.act(); fail == nil {
			fail = err
		}
		if fail != nil {
			s.fail(fail)
		}
		if s.core.over() {
			s.disconnect()
			s.core.linkDown()
			s.act() // down/link, for when it comes back
			if s.fleet.retire(s) {
				return
			}
			continue // it is back already
		}
		s.dialIfDue(ctx)
	}
}

// idle is how long a Session sleeps that has nothing to wait for.
const idle = time.Hour

// wake is when something is due next.
func (s *Session) wake() time.Time {
	at := s.core.deadline()
	if s.core.wantsLink() && s.hangup == nil {
		at = earliest(at, s.redial)
	}
	if at.IsZero() {
		return time.Now().Add(idle)
	}
	return at
}

// heard handles what the device's side has to say, in order.
func (s *Session) heard() {
	s.backlog = append(s.backlog, s.inbox.take()...)
	for len(s.backlog) > 0 {
		in := s.backlog[0]
		if in.kind == published && s.core.waits(in.name) {
			return
		}
		s.backlog = s.backlog[1:]
		switch in.kind {
		case online:
			s.core.online(in.client)
		case offline:
			s.core.offline()
		case published:
			s.core.received(in.name, in.payload)
		case refused:
			s.core.refuse(in.name, refusalOf(in.why))
		}
	}
}

// refusalOf words what the Bus itself turned away.
func refusalOf(why error) *refusal {
	switch {
	case errors.Is(why, mqtt.ErrRetained):
		return &refusal{codeRetained, "nothing below up/ may be retained"}
	case errors.Is(why, mqtt.ErrBusy):
		return &refusal{codeBusy, "too much is waiting already; say it again later"}
	case errors.Is(why, mqtt.ErrTooLarge):
		return &refusal{codeTooLarge, "the broker takes no packet of that size"}
	}
	return &refusal{codeUnsupported, clean(why.Error())}
}

// linked handles a report of the link.
func (s *Session) linked(l link) error {
	switch {
	case l.conn != nil:
		s.conn = l.conn
		s.noteCredentials(l.notes)
		s.core.linkUp()
		s.show(StateJoining, nil)
	case l.bad != nil:
		s.fleet.counters.add(count{dropped, "malformed"})
	case l.err != nil:
		s.noteCredentials(l.notes)
		s.down(l.err)
	default:
		return s.core.fromHub(l.msg)
	}
	return nil
}

// noteCredentials logs what the operator should know, once per change.
func (s *Session) noteCredentials(notes []string) {
	if slices.Equal(notes, s.notes) {
		return
	}
	if notes != nil {
		s.notes = notes
	}
	for _, n := range notes {
		s.log().Warn("credentials", "note", n)
	}
}

// act carries out what the core decided: frames first, then publishes.
func (s *Session) act() error {
	c := &s.core
	var fail error
	for _, m := range c.hub {
		if s.conn == nil || fail != nil {
			break
		}
		fail = s.conn.Write(m)
	}
	for _, m := range c.dev {
		if err := s.fleet.bus.Publish(m); err != nil {
			s.undelivered(m, err)
		}
	}
	s.fleet.counters.add(c.tally...)
	for _, n := range c.notes {
		s.log().Info(n)
	}
	c.hub, c.dev, c.tally, c.notes = c.hub[:0], c.dev[:0], c.tally[:0], c.notes[:0]
	s.refresh()
	return fail
}

// undelivered keeps a command for a device that has just left, and counts the
// rest.
func (s *Session) undelivered(m mqtt.Message, err error) {
	if errors.Is(err, mqtt.ErrAbsent) && !m.Expires.IsZero() {
		s.core.hold(held{m.Name, m.Expires})
		return
	}
	s.core.drop("undelivered")
}

// fail ends a link that is of no use any more. Its goroutine closes the Conn
// and reports; what is reported then is not the cause, so it is handled here.
func (s *Session) fail(err error) {
	if s.hangup == nil {
		return
	}
	s.disconnect()
	s.down(err)
	s.act()
}

// disconnect hangs up and waits until the link's goroutines have reported.
func (s *Session) disconnect() {
	if s.hangup == nil {
		return
	}
	s.hangup()
	for (<-s.links).err == nil {
	}
	s.hangup, s.conn = nil, nil
}

// down decides when to dial again. The link's goroutines have ended.
func (s *Session) down(err error) {
	now := time.Now()
	var up time.Duration
	if s.core.joined {
		up = now.Sub(s.core.joinedAt)
	}
	if s.hangup != nil {
		s.hangup()
	}
	s.hangup, s.conn = nil, nil
	s.core.linkDown()
	why, wait := s.retry.after(err, up, now, s.fleet.jitter())
	s.redial = now.Add(wait)
	s.core.count(refusals, string(why))
	state, level := StateRetrying, slog.LevelInfo
	if why.refuses() {
		state, level = StateRefused, slog.LevelWarn
	}
	s.show(state, &ended{why, err, s.redial})
	args := []any{"cause", string(why), "err", explained(err), "retry", wait.Round(time.Millisecond)}
	if remedy := why.remedy(); remedy != "" {
		args = append(args, "remedy", remedy)
	}
	s.log().Log(context.Background(), level, "link down", args...)
}

// dialIfDue begins a link: one goroutine dials, and a fresh one reads, so that
// no reader keeps the deep stack a TLS handshake grew.
func (s *Session) dialIfDue(ctx context.Context) {
	if s.hangup != nil || !s.core.wantsLink() || time.Now().Before(s.redial) || ctx.Err() != nil {
		return
	}
	s.show(StateDialing, nil)
	s.retry.dialedAt = time.Now()
	// The link outlives ctx until run has said goodbye.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.hangup, s.redial = cancel, time.Time{}
	f, device, own := s.fleet, s.core.device, s.core.class.Identity
	f.wg.Go(func() {
		conn, notes, err := f.dial(ctx, device, own)
		if err != nil {
			s.links <- link{err: err, notes: notes}
			return
		}
		f.wg.Go(func() {
			s.links <- link{conn: conn, notes: notes}
			s.links <- link{err: s.read(ctx, conn)}
		})
	})
}

// read forwards conn's messages until it fails or ctx ends, and closes it.
func (s *Session) read(ctx context.Context, conn *phoenix.Conn) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for {
		m, err := conn.Read()
		switch {
		case errors.Is(err, phoenix.ErrMalformed):
			s.links <- link{bad: err}
		case err != nil:
			return err
		default:
			s.links <- link{msg: m}
		}
	}
}

// say sends, before the gateway ends, what the device has handed over.
func (s *Session) say() {
	s.core.now = time.Now()
	s.heard()
	s.act()
}

// An ended link, for the page.
type ended struct {
	why   cause
	err   error
	retry time.Time
}

// show stores a new state for the page.
func (s *Session) show(state State, e *ended) {
	v := s.core.view()
	v.State, v.Since = state, time.Now()
	if e != nil {
		v.Cause, v.Err, v.Retry = string(e.why), e.err.Error(), e.retry
	}
	s.snapshot.Store(&v)
}

// refresh brings the snapshot up to the core.
func (s *Session) refresh() {
	old := s.snapshot.Load()
	v := s.core.view()
	v.State, v.Since, v.Cause, v.Err, v.Retry = old.State, old.Since, old.Cause, old.Err, old.Retry
	if s.conn != nil {
		state := StateJoining
		if s.core.joined {
			state = StateJoined
		}
		if state != v.State {
			v.State, v.Since = state, time.Now()
		}
	}
	s.snapshot.Store(&v)
}

func (s *Session) log() *slog.Logger { return s.fleet.log.With("device", s.core.device) }

func (f *Fleet) jitter() float64 {
	if f.cfg.Jitter != nil {
		return f.cfg.Jitter()
	}
	return rand.Float64()
}

// isUntrusted reports that the server's certificate, not ours, is the trouble.
func isUntrusted(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	_, ok := errors.AsType[x509.UnknownAuthorityError](err)
	return ok
}
