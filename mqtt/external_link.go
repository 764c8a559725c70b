package mqtt

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	externalKeepAlive = 30 * time.Second
	externalPing      = 10 * time.Second // to a PINGRESP, or the connection is dead
	externalSubscribe = 10 * time.Second // to a SUBACK
	externalGoodbye   = time.Second / 2  // for PUBACKs and DISCONNECT, and then to the broker's close
	externalWindow    = 32               // messages published and not acknowledged by the broker
	externalAcks      = 1<<16 - 1        // messages accepted and not yet acknowledged: every packet identifier
	externalClears    = 1024             // clearings under way
	externalLook      = time.Second      // from the SUBACK to what is retained on <prefix>/gateway, or nothing is
	externalDoubt     = 10 * time.Second // from the SUBACK to the last retained up/online, or a device's return to the broker
	externalSaid      = 16               // messages on <prefix>/gateway not yet heard; the oldest give way
)

// externalLink is one connection to the broker, from CONNECT to its end. A
// fresh paho client serves each: paho's own reconnecting sleeps where it
// cannot be interrupted, has no jitter, and sends again what has expired.
type externalLink struct {
	e       *External
	h       Handler
	ctx     context.Context
	conn    *externalConn
	client  paho.Client
	flush   chan struct{} // closed externalFlush after the end of ctx
	lost    chan error    // paho's last word: all its goroutines have ended
	refused chan error    // what Received returned

	ackWake chan struct{} // there is something in acks
	mu      sync.Mutex    // guards acks
	acks    []byte        // PUBACKs, and PUBRECs, to be written

	said chan externalWord // what the router has heard on <prefix>/gateway
	turn sync.Mutex        // guards the order of what h is told of a device; never held while waiting

	// Owned by run.
	sent   []externalSent // oldest first
	gone   bool           // lost was heard
	looked bool           // OnGateway knows what is retained
	unsure []byte         // heard before that

	// Owned by paho's router, which calls receive.
	publishes uint64              // how many came
	stopped   bool                // after a refusal nothing more is taken
	cleared   map[string]struct{} // topics whose clearing will come back to us
}

type externalSent struct {
	externalItem
	token paho.Token
}

// externalWord is a message on <prefix>/gateway.
type externalWord struct {
	payload  []byte
	retained bool
}

// serve connects once and serves the connection until it ends. up is how long
// the broker had let us in, 0 for not at all.
func (e *External) serve(ctx context.Context, h Handler) (up time.Duration, err error) {
	conn, err := e.dial(ctx)
	if err != nil {
		return 0, fmt.Errorf("mqtt: external: dial: %w", err)
	}
	l := &externalLink{
		e: e, h: h, ctx: ctx, conn: conn,
		flush: make(chan struct{}), lost: make(chan error, 1), refused: make(chan error, 1),
		ackWake: make(chan struct{}, 1), cleared: map[string]struct{}{}, said: make(chan externalWord, externalSaid),
	}
	l.client = paho.NewClient(l.options())
	stop := context.AfterFunc(ctx, func() { conn.end(ctx.Err()) })
	token := l.client.Connect().(*paho.ConnectToken)
	<-token.Done() // within externalDial, which paho sets as the deadline
	stop()
	if err := token.Error(); err != nil {
		conn.end(err)
		return 0, fmt.Errorf("mqtt: external: connect: %w", err)
	}
	return l.run(token.SessionPresent())
}

func (l *externalLink) options() *paho.ClientOptions {
	c := l.e.c
	o := paho.NewClientOptions().
		SetProtocolVersion(4).
		SetClientID(c.ClientID).SetUsername(c.Username).SetPassword(c.Password).
		SetCleanSession(false). // the broker keeps what devices publish while we are away
		SetAutoReconnect(false).SetConnectRetry(false).
		SetStore(externalStore{}).
		SetKeepAlive(externalKeepAlive).SetPingTimeout(externalPing).
		SetConnectTimeout(externalDial).SetWriteTimeout(externalWrite).
		SetOrderMatters(true).SetAutoAckDisabled(true).
		SetDefaultPublishHandler(l.receive).
		SetConnectionLostHandler(func(_ paho.Client, err error) { l.lost <- err }).
		SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) { return l.conn, nil })
	o.Servers = []*url.URL{l.e.broker}
	if c.Will.Name != "" {
		o.SetBinaryWill(c.Of(c.Will), c.Will.Payload, 1, true)
	}
	return o
}

// run serves an accepted connection until nothing of it is left.
func (l *externalLink) run(session bool) (up time.Duration, err error) {
	start := time.Now()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { defer close(stopped); l.acknowledge(stop) }()
	if !session {
		l.e.doubt()
	}
	doing := "subscribe: "
	if err = l.subscribe(); err == nil {
		l.e.log.Info("connected to the broker", "broker", l.e.broker.Redacted(), "session", session)
		l.e.linkUp()
		doing = ""
		err = l.pump()
	}
	if why := l.conn.failed(); why != nil && why != errExternalEnded {
		err = why // the cause of what paho says
	}
	close(stop)
	l.conn.hurry(externalGoodbye)
	<-stopped
	if !l.gone {
		l.goodbye()
	}
	var unacked []externalItem
	for _, s := range l.sent {
		unacked = append(unacked, s.externalItem)
	}
	l.e.linkDown(unacked)
	return max(time.Since(start), 1), fmt.Errorf("mqtt: external: %s%w", doing, err)
}

// subscribe asks for what devices say and for the gateway's own topic, on
// every connection: the broker may have lost our session, and answers with
// what is retained (§3.8.4-3). A refusal is tried again twice: there are
// brokers (mochi) that refuse the packet identifier of a delivery not yet
// acknowledged, and those are being acknowledged meanwhile. The gateway's own
// topic is asked for at QoS 0, which no broker has to keep for us while we are
// away (§3.1.2.4): an old word would be taken for a new one.
func (l *externalLink) subscribe() error {
	filters := map[string]byte{l.e.c.Prefix + "/+/up/#": 1, l.e.c.Prefix + "/gateway": 0}
	l.conn.filters.Store(int32(len(filters)))
	for try := 0; ; try++ {
		token := l.client.SubscribeMultiple(filters, nil).(*paho.SubscribeToken)
		if err := l.wait(token.Done(), externalSubscribe); err != nil {
			return err
		}
		if err := token.Error(); err != nil {
			return err
		}
		refused := ""
		granted := token.Result()
		for filter := range filters {
			if qos, ok := granted[filter]; !ok || qos > 2 { // 0x80 is failure (§3.9.3)
				refused = filter
			}
		}
		if refused == "" {
			return nil
		}
		if try == 2 {
			return fmt.Errorf("the broker refuses %s; its ACL must allow it", refused)
		}
		if err := l.wait(nil, time.Second); err != nil && err != errExternalSilent {
			return err
		}
	}
}

// wait waits for done; the error is why it will not come, or
// [errExternalSilent] after limit.
func (l *externalLink) wait(done <-chan struct{}, limit time.Duration) error {
	select {
	case <-done:
		return nil
	case err := <-l.lost:
		l.gone = true
		return err
	case err := <-l.refused:
		return fmt.Errorf("a message was not accepted: %w", err)
	case <-l.ctx.Done():
		return l.ctx.Err()
	case <-time.After(limit):
		return errExternalSilent
	}
}

// pump publishes what is queued until the connection ends, or, after ctx has
// ended, until nothing is left.
func (l *externalLink) pump() error {
	settled := time.NewTimer(externalSettled)
	defer settled.Stop()
	look := time.NewTimer(externalLook)
	defer look.Stop()
	doubt := time.NewTimer(externalDoubt)
	defer doubt.Stop()
	defer context.AfterFunc(l.ctx, func() {
		l.e.close()
		time.AfterFunc(externalFlush, func() { close(l.flush) })
	})()
	end := l.ctx.Done()
	for {
		if err := l.fill(); err != nil {
			return err
		}
		if end == nil && len(l.sent) == 0 {
			return l.ctx.Err()
		}
		select {
		case <-l.oldest():
			if err := l.sent[0].token.Error(); err != nil {
				return fmt.Errorf("publish: %w", err)
			}
			l.sent = l.sent[1:]
		case <-l.e.wake:
		case w := <-l.said:
			l.hear(w)
		case <-look.C:
			l.look(l.unsure)
		case <-doubt.C:
			l.giveUp()
		case <-settled.C:
			l.e.settled()
		case err := <-l.refused:
			return fmt.Errorf("a message was not accepted: %w", err)
		case err := <-l.lost:
			l.gone = true
			return err
		case <-end:
			end = nil
		case <-l.flush:
			return l.ctx.Err()
		}
	}
}

// oldest is ready when the broker has acknowledged the message sent first. A
// broker acknowledges in the order of publishing (§4.6-2).
func (l *externalLink) oldest() <-chan struct{} {
	if len(l.sent) == 0 {
		return nil
	}
	return l.sent[0].token.Done()
}

// fill publishes while the window allows. paho waits up to externalWrite for
// the socket, no longer.
func (l *externalLink) fill() error {
	for len(l.sent) < externalWindow {
		select {
		case <-l.flush:
			return l.ctx.Err()
		default:
		}
		it, ok := l.e.take()
		if !ok {
			return nil
		}
		token := l.client.Publish(it.topic, it.qos, it.Retain, it.Payload)
		l.sent = append(l.sent, externalSent{it, token})
		select {
		case <-token.Done():
			if err := token.Error(); err != nil {
				return fmt.Errorf("publish: %w", err)
			}
		default:
		}
	}
	return nil
}

// goodbye ends the connection from our side, after what was accepted is
// acknowledged. DISCONNECT keeps the broker from publishing the will; the
// broker then closes (§3.14.4).
func (l *externalLink) goodbye() {
	l.conn.disconnect(l.takeAcks())
	select {
	case <-l.lost:
	case <-time.After(externalGoodbye):
		l.conn.end(errExternalEnded)
		<-l.lost
	}
	l.gone = true
}

// externalStore keeps nothing: a paho client lives for one connection, what is
// unacknowledged waits in externalLink.sent, and what has come in would be held
// until paho acknowledges it.
type externalStore struct{}

var _ paho.Store = externalStore{}

func (externalStore) Open()                             {}
func (externalStore) Put(string, packets.ControlPacket) {}
func (externalStore) Get(string) packets.ControlPacket  { return nil }
func (externalStore) All() []string                     { return nil }
func (externalStore) Del(string)                        {}
func (externalStore) Close()                            {}
func (externalStore) Reset()                            {}
