package mqtt

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// acknowledge writes what accept has left, past paho: there it would wait
// behind a PUBLISH, whose write waits for a broker that may be waiting for us
// to read on, which the router would not do while it waits for room here.
func (l *externalLink) acknowledge(stop <-chan struct{}) {
	for {
		select {
		case <-l.ackWake:
			if acks := l.takeAcks(); len(acks) > 0 {
				_, _ = l.conn.Write(acks) // an error is the connection's end, and paho's to notice
			}
		case <-stop:
			return
		}
	}
}

// accept notes that m is to be acknowledged, in order (§4.6-2). It never waits.
func (l *externalLink) accept(m paho.Message) {
	header := [3]byte{1: 0x40, 2: 0x50}[m.Qos()] // PUBACK; PUBREC, should a broker exceed the QoS granted
	if header == 0 {
		return
	}
	l.mu.Lock()
	l.acks = append(l.acks, header, 2, byte(m.MessageID()>>8), byte(m.MessageID()))
	waiting := len(l.acks) / 4
	l.mu.Unlock()
	if waiting > externalAcks {
		l.conn.end(fmt.Errorf("%w: a packet identifier in use was used again", errExternalProtocol))
	}
	select {
	case l.ackWake <- struct{}{}:
	default:
	}
}

func (l *externalLink) takeAcks() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	acks := l.acks
	l.acks = nil
	return acks
}

// receive takes one message from the broker, on paho's router goroutine.
func (l *externalLink) receive(_ paho.Client, m paho.Message) {
	l.publishes++
	large := l.conn.large(l.publishes)
	if l.stopped || l.ctx.Err() != nil {
		return // the broker keeps it
	}
	if err := l.handle(m, large); err != nil {
		l.stopped = true
		l.refused <- err
		return
	}
	l.accept(m)
}

// handle tells the Handler what m says. An error leaves m unacknowledged.
func (l *externalLink) handle(m paho.Message, large bool) error {
	l.turn.Lock()
	defer l.turn.Unlock()
	e, topic := l.e, m.Topic()
	device, name, ok := e.c.Up(topic)
	switch {
	case topic == e.c.Prefix+"/gateway":
		l.overhear(m, large)
	case !ok:
		e.count("bad_topic")
	case m.Retained() && name != "online":
		l.clear(device, name, topic)
	case large:
		e.count("too_large")
		l.h.Refused(device, name, ErrTooLarge)
	case name == "online":
		l.presence(device, string(m.Payload()), m.Retained())
	case len(m.Payload()) == 0 && l.echo(topic):
	default:
		return l.received(device, name, m)
	}
	return nil
}

// overhear passes on a word on <prefix>/gateway. One that comes at more than
// QoS 0 was kept for an earlier subscription.
func (l *externalLink) overhear(m paho.Message, large bool) {
	if large || m.Qos() > 0 {
		return
	}
	w := externalWord{m.Payload(), m.Retained()}
	select {
	case l.said <- w:
	default:
		select {
		case <-l.said:
		default:
		}
		l.said <- w // nobody else adds
	}
}

// hear tells OnGateway of w. One without the retain flag that comes before the
// retained one may be older, if the broker keeps QoS 0 too, so it counts only
// if nothing is retained. A retained one that comes too late is news, too.
func (l *externalLink) hear(w externalWord) {
	switch {
	case w.retained && !l.looked:
		l.look(w.payload)
	case !l.looked:
		l.unsure = w.payload
	case l.e.c.OnGateway != nil:
		l.e.c.OnGateway(w.payload, true)
	}
}

// look tells OnGateway, once, what is retained.
func (l *externalLink) look(payload []byte) {
	if !l.looked && l.e.c.OnGateway != nil {
		l.e.c.OnGateway(payload, false)
	}
	l.looked, l.unsure = true, nil
}

func (l *externalLink) received(device, name string, m paho.Message) error {
	fresh, ok := l.e.arrive(device)
	if !ok {
		return nil
	}
	if fresh {
		l.h.Online(device, Client{})
	}
	err := l.h.Received(device, name, m.Payload())
	switch {
	case errors.Is(err, ErrBusy): // this device's affair, and the connection is everybody's
		l.e.count("busy")
		l.h.Refused(device, name, ErrBusy)
		return nil
	case err != nil && m.Qos() == 0:
		l.e.count("refused") // nobody would send it again
		return nil
	}
	return err
}

// presence reads an up/online. The retained one comes with every subscription
// and says nothing new about a device that is there already; an empty one is
// somebody clearing the topic.
func (l *externalLink) presence(device, payload string, retained bool) {
	switch payload {
	case "1":
		if fresh, ok := l.e.arrive(device); ok && (fresh || !retained) {
			l.h.Online(device, Client{})
		}
	case "0", "":
		if l.e.leave(device) {
			l.h.Offline(device)
		}
	default:
		l.e.count("bad_presence")
		l.h.Refused(device, "online", ErrPresence)
	}
}

// clear removes a message somebody has retained below up/. A broker shows the
// retain flag only to a new subscription (§3.3.1-8, -9), so it is seen after
// our next SUBSCRIBE. It goes at QoS 0: if it is lost, that happens again.
func (l *externalLink) clear(device, name, topic string) {
	l.e.count("retained")
	l.h.Refused(device, name, ErrRetained)
	if len(l.cleared) >= externalClears {
		return
	}
	l.e.mu.Lock()
	defer l.e.mu.Unlock()
	if l.e.add(externalItem{Message: Message{Device: device, Name: name, Retain: true}, topic: topic}) == nil {
		l.cleared[topic] = struct{}{}
	}
}

// echo reports whether an empty message is our own clearing of topic, which
// MQTT 3.1.1 cannot keep from coming back.
func (l *externalLink) echo(topic string) bool {
	_, ours := l.cleared[topic]
	delete(l.cleared, topic)
	return ours
}

// doubt notes that the broker has lost our session, and may have lost what was
// retained: whoever is there has to say so.
func (e *External) doubt() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.doubted = maps.Clone(e.online)
}

// giveUp takes those for gone who are still in doubt.
func (l *externalLink) giveUp() {
	l.turn.Lock()
	defer l.turn.Unlock()
	l.e.mu.Lock()
	gone := slices.Sorted(maps.Keys(l.e.doubted))
	l.e.mu.Unlock()
	for _, device := range gone {
		if l.e.leave(device) {
			l.h.Offline(device)
		}
	}
}
