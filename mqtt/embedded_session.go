package mqtt

import (
	"errors"
	"net"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// A session is one connection of one device, from its CONNECT on. A device has
// one at a time: a newer connection ends the older and waits until nothing of
// it runs any more. That keeps the Handler's calls in order, and mochi never
// sees two clients of one name.
type session struct {
	device string
	client Client
	cl     *mochi.Client
	sock   *socket
	box    *mailbox
	will   *will

	wake chan struct{} // one poke, to look again
	stop chan struct{} // closed by finish: the worker is to end
	idle chan struct{} // closed when the worker has ended
	done chan struct{} // closed when nothing of the session runs any more

	// Owned by the goroutine that reads.
	clean bool // the device said DISCONNECT

	// Embedded.mu guards what follows.
	working bool          // the worker runs
	ending  *packets.Code // why the session is to end, or nil
}

// A will is the last will of a connection.
type will struct {
	topic   string
	payload []byte
	qos     byte
	retain  bool
}

// poke tells the worker to look again.
func (s *session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// claim makes s the connection of its device, and waits for the one before.
func (e *Embedded) claim(s *session) *refusal {
	e.mu.Lock()
	box := e.boxes[s.device]
	if box == nil {
		box = e.newMailbox(s.device)
	}
	before := box.session
	var no *refusal
	switch {
	case e.closing:
		no = unavailable(packets.ErrServerShuttingDown)
	case before == nil && e.sessions >= e.maxDevices:
		no = unavailable(packets.ErrServerBusy)
	}
	if no != nil {
		e.release(s.device, box)
		e.mu.Unlock()
		return no
	}
	if before == nil {
		e.sessions++
	}
	s.box, box.session = box, s
	s.sock.session.Store(s)
	e.mu.Unlock()

	if before != nil {
		e.end(before, packets.ErrSessionTakenOver)
		<-before.done
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.ending != nil { // meanwhile a newer one came, or the shutdown
		return unavailable(*s.ending)
	}
	return nil
}

// establish starts the worker of s, and tells the Handler.
func (e *Embedded) establish(s *session) {
	e.mu.Lock()
	if why := s.ending; why != nil {
		e.mu.Unlock()
		s.cl.Stop(*why) // and not only its socket: packets behind the CONNECT may have been read
		return
	}
	s.working = true
	s.box.open = true
	s.box.window = window(s.cl)
	s.box.lastID = 0
	e.mu.Unlock()
	go e.work(s)
	e.h.Online(s.device, s.client)
}

// window is how many messages a device may leave unacknowledged. MQTT 3.1.1
// knows no receive maximum (MQTT 5 §3.1.2.11.3).
func window(cl *mochi.Client) int {
	if n := int(cl.Properties.Props.ReceiveMaximum); n > 0 && n < maxUnacked {
		return n
	}
	return maxUnacked
}

// end asks s to end: its worker takes leave and closes the socket.
func (e *Embedded) end(s *session, why packets.Code) {
	e.mu.Lock()
	if s.ending == nil {
		s.ending = &why
	}
	working := s.working
	e.mu.Unlock()
	if !working {
		_ = s.sock.Close()
		return
	}
	s.sock.hurry()
	s.poke()
}

// finish is called by the listener when the goroutine of a socket ends,
// however it does.
func (e *Embedded) finish(sock *socket) {
	s := sock.session.Load()
	if s == nil {
		return
	}
	close(s.stop)
	e.mu.Lock()
	working := s.working
	e.mu.Unlock()
	if working {
		<-s.idle
		e.bequeath(s)
	}
	e.forgetClient(s.cl)

	e.mu.Lock()
	replaced := s.box.session != s
	leaves := s.box.open && !replaced
	if replaced {
		s.box.takeOver()
	} else {
		s.box.open = false
		s.box.close(time.Now())
	}
	e.mu.Unlock()
	if leaves {
		e.h.Offline(s.device)
	}
	e.mu.Lock()
	if s.box.session == s { // nobody came while the Handler was told
		s.box.session = nil
		e.sessions--
		e.release(s.device, s.box)
	}
	e.mu.Unlock()
	close(s.done)
}

// bequeath hands the will of s to the Handler, unless the device said
// DISCONNECT. It comes at once, whatever will delay was asked for: the delay
// ends with the session, and the session with the connection (MQTT 5 §3.1.3.2.2).
func (e *Embedded) bequeath(s *session) {
	defer e.contain()
	if s.will == nil || s.clean {
		return
	}
	if device, name, ok := e.topics.Up(s.will.topic); ok && name != onlineName {
		_ = e.h.Received(device, name, s.will.payload) // nobody is left to be told
	}
}

// forgetClient does what mochi leaves undone when a packet panicked, or when a
// connection ended between its CONNECT and its first packet.
func (e *Embedded) forgetClient(cl *mochi.Client) {
	if known, ok := e.srv.Clients.Get(cl.ID); ok && known == cl {
		cl.ClearInflights()
		e.srv.UnsubscribeClient(cl)
		e.srv.Clients.Delete(cl.ID)
	}
}

// work writes what the mailbox of s lets go, until s ends.
func (e *Embedded) work(s *session) {
	defer close(s.idle)
	defer s.sock.Close()
	defer e.contain()
	for {
		l, ok, ending := e.take(s)
		switch {
		case ok:
			if err := e.send(s, l); err != nil {
				return
			}
		case ending != nil:
			s.farewell(*ending)
			return
		default:
			select {
			case <-s.wake:
			case <-s.stop:
				return
			}
		}
	}
}

// take is what the worker of s is to do next: send l, or take leave, or wait.
// Before a shutdown what can be sent still is; a connection that was taken
// over has nothing more to be told.
func (e *Embedded) take(s *session) (l letter, ok bool, ending *packets.Code) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.ending != nil && *s.ending != packets.ErrServerShuttingDown {
		return letter{}, false, s.ending
	}
	if s.box.held { // not for long: hurry bounds the write of SUBACK
		return letter{}, false, nil
	}
	l, ok = s.box.next(time.Now())
	return l, ok, s.ending
}

// send writes l to the device of s.
func (e *Embedded) send(s *session, l letter) error {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: l.qos, Retain: l.retain},
		TopicName:   l.topic,
		Payload:     l.payload,
		PacketID:    l.id,
	}
	if s.client.Version == 5 {
		pk.Properties.SubscriptionIdentifier = l.ids
		if !l.expires.IsZero() {
			pk.Expiry = l.expires.Unix() // mochi sends what is left of it, at least 1 s
		}
	}
	err := s.cl.WritePacket(pk)
	if errors.Is(err, packets.ErrPacketTooLarge) { // retained before anybody knew the limit
		e.lost.add("too_large")
		e.acked(s, l.id)
		return nil
	}
	return err
}

// acked ends the message to s with packet identifier id.
func (e *Embedded) acked(s *session, id uint16) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.box.ack(id)
	s.poke()
}

// farewell sends a DISCONNECT to a device that would understand it, which
// MQTT 3.1.1 does not, and closes the socket.
func (s *session) farewell(why packets.Code) {
	if s.client.Version == 5 {
		_ = s.cl.WritePacket(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Disconnect},
			ReasonCode:  why.Code,
			Properties:  packets.Properties{ReasonString: why.Reason},
		})
	}
	_ = s.sock.Close()
}

// tooLarge reports whether l cannot be sent to the device of s, for the packet
// would be larger than it takes (MQTT 5 §3.1.2.11.4).
func (s *session) tooLarge(l letter) bool {
	if s.client.MaxPacket == 0 {
		return false
	}
	n := 2 + len(l.topic) + 2 + 1 + len(l.payload) // topic, packet identifier, property length
	if !l.expires.IsZero() {
		n += 5
	}
	for v := n; ; v >>= 7 { // fixed header
		n++
		if v < 0x80 {
			return n+1 > s.client.MaxPacket
		}
	}
}

// remote is where cl connected from, for the log.
func remote(cl *mochi.Client) string {
	host, _, err := net.SplitHostPort(cl.Net.Remote)
	if err != nil {
		return cl.Net.Remote
	}
	return host
}
