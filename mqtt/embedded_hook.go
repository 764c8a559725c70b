package mqtt

import (
	"fmt"
	"slices"
	"strings"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// A brokerHook is what mochi asks and tells. There is exactly one: mochi takes
// the yes of any hook for a yes. Its methods are called by the goroutine that
// reads from the client; OnPacketEncode by the session's worker, too.
type brokerHook struct {
	mochi.HookBase
	e *Embedded
}

func (h *brokerHook) ID() string { return "ganglion" }

func (h *brokerHook) Provides(b byte) bool {
	switch b {
	case mochi.OnPacketRead, mochi.OnConnect, mochi.OnConnectAuthenticate, mochi.OnSessionEstablished,
		mochi.OnACLCheck, mochi.OnPublish, mochi.OnSubscribed, mochi.OnUnsubscribed,
		mochi.OnPacketProcessed, mochi.OnPacketEncode:
		return true
	}
	return false
}

// socketOf is the socket of cl, which came through our listener.
func socketOf(cl *mochi.Client) *socket { return cl.Net.Conn.(*socket) }

// sessionOf is the session of cl, or nil before its CONNECT was accepted.
func sessionOf(cl *mochi.Client) *session { return socketOf(cl).session.Load() }

// OnPacketRead sees every packet before mochi acts on it.
func (h *brokerHook) OnPacketRead(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	s := sessionOf(cl)
	switch pk.FixedHeader.Type {
	case packets.Connect:
		if s != nil {
			break // a second one, which mochi refuses
		}
		pk.Connect.Clean = true // no sessions
		if c := &pk.Connect; c.WillFlag {
			// The will never reaches mochi, which publishes it past the ACL and
			// past OnPublish, and takes an empty one for an error.
			socketOf(cl).will = &will{topic: c.WillTopic, payload: c.WillPayload, qos: c.WillQos, retain: c.WillRetain}
			c.WillFlag, c.WillRetain, c.WillQos, c.WillTopic, c.WillPayload = false, false, 0, "", nil
		}
	case packets.Publish:
		// mochi throws these away without an answer, and a device that waits for
		// one sends nothing more. One level down they are refused as any other.
		if len(pk.TopicName) >= len(mochi.SysPrefix) && strings.EqualFold(pk.TopicName[:len(mochi.SysPrefix)], mochi.SysPrefix) {
			pk.TopicName = "/" + pk.TopicName
		}
	case packets.Disconnect:
		pk.Properties.SessionExpiryIntervalFlag = false // we have told the client it has none
		if s != nil {
			s.clean = pk.ReasonCode != packets.CodeDisconnectWillMessage.Code
		}
	case packets.Puback:
		// Not left to OnQosComplete: mochi keeps one table for the identifiers
		// of both directions, so that a device's own publish would end a
		// delivery. Ours are never in it.
		if s != nil {
			h.e.acked(s, pk.PacketID)
		}
	}
	return pk, nil
}

// A refusal is why a CONNECT is turned down: the CONNACK return code of MQTT
// 3.1.1 §3.2.2.3 and the reason of MQTT 5 §3.2.2.2.
type refusal struct {
	v3     byte
	v5     packets.Code
	reason string
}

func (r *refusal) Error() string { return r.reason }

func badID(id string) *refusal {
	return &refusal{2, packets.ErrClientIdentifierNotValid,
		fmt.Sprintf("client id %.80q is no device identifier ([A-Za-z0-9][A-Za-z0-9._-]{0,63}, not gateway)", id)}
}

func notAuthorized(format string, args ...any) *refusal {
	return &refusal{5, packets.ErrNotAuthorized, fmt.Sprintf(format, args...)}
}

func unavailable(why packets.Code) *refusal { return &refusal{3, why, why.Reason} }

// examine is what CONNECT must satisfy before it may take over a connection.
func (h *brokerHook) examine(sock *socket, pk packets.Packet) *refusal {
	c, w := pk.Connect, sock.will
	owner, certified := sock.certificate()
	switch {
	case !ValidID(c.ClientIdentifier):
		return badID(c.ClientIdentifier)
	case c.UsernameFlag && string(c.Username) != c.ClientIdentifier:
		return notAuthorized("user name is not the client id %s", c.ClientIdentifier)
	case certified && owner != c.ClientIdentifier:
		return notAuthorized("client id %s has the certificate of %.80q", c.ClientIdentifier, owner)
	case pk.Properties.AuthenticationMethod != "":
		return &refusal{5, packets.ErrBadAuthenticationMethod, "no authentication method is supported"}
	case w == nil:
		return nil
	case w.qos > 2:
		return notAuthorized("will QoS is 3")
	case !h.e.topics.mayWrite(c.ClientIdentifier, w.topic):
		return notAuthorized("will topic %.80q is not below the up/ of %s", w.topic, c.ClientIdentifier)
	case w.retain && !strings.HasSuffix(w.topic, "/up/"+onlineName):
		return notAuthorized("retained will on %.80q", w.topic)
	}
	return nil
}

// OnConnect admits a client. It is asked before OnConnectAuthenticate, and
// unlike it may say why not.
func (h *brokerHook) OnConnect(cl *mochi.Client, pk packets.Packet) error {
	sock := socketOf(cl)
	if r := h.examine(sock, pk); r != nil {
		return h.refuse(cl, r)
	}
	setKeepalive(cl)
	cl.State.Inflight.ResetSendQuota(0) // we keep to the client's receive maximum, mochi does not
	if pk.ProtocolVersion < 5 {
		cl.State.Inflight.ResetReceiveQuota(256) // 3.1.1 cannot be told, and would be cut off
	}
	s := &session{
		device: strings.Clone(pk.Connect.ClientIdentifier), // which else pins the packet
		client: Client{Version: pk.ProtocolVersion, MaxPacket: int(pk.Properties.MaximumPacketSize)},
		cl:     cl, sock: sock, will: sock.will,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), idle: make(chan struct{}), done: make(chan struct{}),
	}
	if r := h.e.claim(s); r != nil {
		return h.refuse(cl, r)
	}
	return nil
}

// refuse answers CONNECT with r, which is returned to end the connection.
func (h *brokerHook) refuse(cl *mochi.Client, r *refusal) error {
	h.e.noise.Warn("mqtt: connection refused", "remote", remote(cl), "reason", r.reason)
	ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}, ReasonCode: r.v3}
	if cl.Properties.ProtocolVersion == 5 {
		ack.ReasonCode, ack.Properties.ReasonString = r.v5.Code, r.reason
	}
	_ = cl.WritePacket(ack)
	return r
}

// The keepalives a client may have, seconds. Above maxKeepalive3 mochi's
// 16-bit sum of 1.5 times the keepalive overflows.
const (
	minKeepalive5, maxKeepalive5 = 10, 600
	maxKeepalive3                = 43690
)

// setKeepalive bounds the keepalive. MQTT 5 tells the client (§3.2.2.3.14);
// 3.1.1 cannot, so that only what would break is changed.
func setKeepalive(cl *mochi.Client) {
	k := &cl.State.Keepalive
	if cl.Properties.ProtocolVersion < 5 {
		*k = min(*k, maxKeepalive3)
		return
	}
	asked := *k
	if *k == 0 {
		*k = maxKeepalive5
	}
	*k = min(max(*k, minKeepalive5), maxKeepalive5)
	cl.State.ServerKeepalive = *k != asked
}

// OnConnectAuthenticate lets in whom OnConnect has admitted.
func (h *brokerHook) OnConnectAuthenticate(cl *mochi.Client, _ packets.Packet) bool {
	return sessionOf(cl) != nil
}

// OnPacketEncode tells MQTT 5 clients in CONNACK and SUBACK what mochi does not.
func (h *brokerHook) OnPacketEncode(cl *mochi.Client, pk packets.Packet) packets.Packet {
	switch p := &pk.Properties; {
	case pk.FixedHeader.Type == packets.Connack && pk.ReasonCode == 0:
		p.MaximumPacketSize = uint32(h.e.maxPacket)
		p.SharedSubAvailable, p.SharedSubAvailableFlag = 0, true
	case pk.FixedHeader.Type == packets.Suback && p.ReasonString == "":
		const frame = 16 // bytes around the codes and the reason, at most
		reason := h.whyRefused(cl, pk.ReasonCodes)
		// A reason must not make the packet larger than the client takes
		// (MQTT 5 §3.9.2.1.2).
		if most := int(cl.Properties.Props.MaximumPacketSize); most == 0 || frame+len(pk.ReasonCodes)+len(reason) <= most {
			p.ReasonString = reason
		}
	}
	return pk
}

// whyRefused is the reason for the first refusal among the codes of a SUBACK,
// or "" if there is none.
func (h *brokerHook) whyRefused(cl *mochi.Client, codes []byte) string {
	i := slices.IndexFunc(codes, func(c byte) bool { return c >= packets.ErrUnspecifiedError.Code })
	if i < 0 {
		return ""
	}
	switch prefix := h.e.topics.Prefix; codes[i] {
	case packets.ErrNotAuthorized.Code:
		return fmt.Sprintf("only %s/%s/down/... and %s/%s can be subscribed to, and not shared", prefix, cl.ID, prefix, gatewayName)
	case packets.ErrQuotaExceeded.Code:
		return fmt.Sprintf("a device may have %d subscriptions", maxSubs)
	case packets.ErrTopicFilterInvalid.Code:
		return packets.ErrTopicFilterInvalid.Reason
	}
	return "refused"
}

// OnSessionEstablished follows CONNACK.
func (h *brokerHook) OnSessionEstablished(cl *mochi.Client, _ packets.Packet) {
	h.e.establish(sessionOf(cl))
}

// maxSubs is how many filters one device may have.
const maxSubs = 32

// OnACLCheck is asked with the filter of a SUBSCRIBE, as it came, and with the
// topic of a PUBLISH.
func (h *brokerHook) OnACLCheck(cl *mochi.Client, topic string, write bool) bool {
	s := sessionOf(cl)
	if s == nil {
		return false
	}
	ok := h.e.topics.mayWrite(s.device, topic)
	if !write {
		_, known := cl.State.Subscriptions.Get(topic)
		ok = h.e.topics.mayRead(s.device, topic) && (known || cl.State.Subscriptions.Len() < maxSubs)
	}
	switch {
	case ok:
		return true
	case write && s.client.Version < 5:
		// mochi would end the connection: 3.1.1 has no other no. OnPublish asks
		// again, and drops it.
		return true
	}
	what := foreignPublish
	switch {
	case write:
	case h.e.topics.mayRead(s.device, topic):
		what = "one subscription too many"
	default:
		what = "subscription outside the device's own topics"
	}
	h.denied(s, what, topic)
	return false
}

const foreignPublish = "publish outside the device's own topics"

func (h *brokerHook) denied(s *session, what, topic string) {
	h.e.lost.add("acl")
	h.e.noise.Warn("mqtt: "+what+" refused", "device", s.device, "topic", fmt.Sprintf("%.80q", topic))
}

// OnPublish runs before PUBACK or PUBREC is sent, once for each message: mochi
// answers a repeated QoS 2 identifier itself. Nothing that a device publishes
// goes to another one, and nothing is retained.
func (h *brokerHook) OnPublish(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	s := sessionOf(cl)
	device, name, ok := h.e.topics.Up(pk.TopicName)
	switch {
	case !ok || device != s.device:
		h.denied(s, foreignPublish, pk.TopicName)
	case name == onlineName:
	case pk.FixedHeader.Retain:
		h.e.lost.add("retained")
		h.e.h.Refused(s.device, strings.Clone(name), ErrRetained)
	default:
		// mochi has copied the packet for us alone; only the topic's string
		// would pin it.
		if err := h.e.h.Received(s.device, strings.Clone(name), pk.Payload); err != nil {
			h.reject(cl, s)
			return pk, packets.ErrRejectPacket // the one error that mochi does not acknowledge
		}
	}
	return pk, packets.CodeSuccessIgnore
}

// reject ends the connection of a device whose message was not accepted, so
// that it sends it again.
func (h *brokerHook) reject(cl *mochi.Client, s *session) {
	s.farewell(packets.ErrImplementationSpecificError)
	cl.Stop(packets.ErrImplementationSpecificError)
}

// OnSubscribed precedes SUBACK, which a small client wants to see before any
// message: the worker is held until OnPacketProcessed.
func (h *brokerHook) OnSubscribed(cl *mochi.Client, pk packets.Packet, codes []byte) {
	s := sessionOf(cl)
	h.e.mu.Lock()
	defer h.e.mu.Unlock()
	s.box.held = true
	for i, f := range pk.Filters {
		if codes[i] > packets.CodeGrantedQos2.Code {
			// mochi knows one no of OnACLCheck, and sends the codes as they are here.
			if codes[i] == packets.ErrNotAuthorized.Code && h.e.topics.mayRead(s.device, f.Filter) {
				codes[i] = packets.ErrQuotaExceeded.Code
			}
			continue
		}
		// Retain Handling (MQTT 5 §3.8.3.1): always, for new subscriptions, never.
		state := f.RetainHandling == 0 || f.RetainHandling == 1 && !s.box.subscribed(f.Filter)
		s.box.subscribe(subscription{
			filter: strings.Clone(f.Filter), qos: codes[i], id: f.Identifier, asPublished: f.RetainAsPublished,
		}, state, time.Now())
	}
}

// OnPacketProcessed follows the answer to a packet.
func (h *brokerHook) OnPacketProcessed(cl *mochi.Client, pk packets.Packet, _ error) {
	if pk.FixedHeader.Type != packets.Subscribe {
		return
	}
	s := sessionOf(cl)
	h.e.mu.Lock()
	defer h.e.mu.Unlock()
	s.box.held = false
	s.poke()
}

// OnUnsubscribed follows an UNSUBSCRIBE, and the end of a client.
func (h *brokerHook) OnUnsubscribed(cl *mochi.Client, pk packets.Packet) {
	s := sessionOf(cl)
	h.e.mu.Lock()
	defer h.e.mu.Unlock()
	for _, f := range pk.Filters {
		s.box.unsubscribe(f.Filter)
	}
}
