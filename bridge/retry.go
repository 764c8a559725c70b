package bridge

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"ganglion/identity"
	"ganglion/phoenix"
)

// A cause is why a link ended or did not come up, in a word for the page, the
// metrics and the log.
type cause string

const (
	causeTransport   cause = "transport"    // the network, or a server that is away
	causeShed        cause = "shed"         // closed inside the TLS handshake: the server is busy
	causeRestart     cause = "restart"      // 1012: the node is shutting down
	causeTaken       cause = "taken_over"   // 1001: another connection of this device, or an operator
	causeContested   cause = "contested"    // taken over again and again: somebody else has the identity
	causeUnavailable cause = "unavailable"  // 503: the platform cannot be reached to authenticate
	causeUnauthorize cause = "unauthorized" // 401: the credentials are refused
	causeForbidden   cause = "forbidden"    // 403: vsn or Origin
	causeCertificate cause = "certificate"  // a TLS alert: our certificate is refused
	causeIdentity    cause = "identity"     // there is nothing to prove the device with
	causeServer      cause = "server_cert"  // the server's certificate is not trusted
	causeJoin        cause = "join_refused"
	causeSilent      cause = "silent" // heartbeats are not answered
	causeRedirect    cause = "redirect"
	causeStatus      cause = "http_status" // any other answer to the upgrade
)

// refuses reports whether knocking louder does not help: somebody has to act.
func (c cause) refuses() bool {
	switch c {
	case causeUnauthorize, causeForbidden, causeCertificate, causeIdentity, causeServer, causeJoin, causeContested:
		return true
	}
	return false
}

// remedy is what an operator can do, where anything: one line for the log.
func (c cause) remedy() string {
	switch c {
	case causeUnauthorize:
		return "check the secret or certificate of this device, that shared secrets are enabled at NervesHub, and this machine's clock"
	case causeForbidden, causeRedirect, causeStatus:
		return "check hub.url: it must be the device socket, wss://HOST/device-socket/websocket, with nothing in between that answers for it"
	case causeCertificate:
		return "NervesHub does not take this certificate: its CA must be registered, the device known, and the key the one it came with first"
	case causeServer:
		return "set hub.ca_file to the CA of this NervesHub, and check the host in hub.url and this machine's clock"
	case causeJoin:
		return "NervesHub cannot take what this device says it runs; compare it with the device's page there"
	case causeContested:
		return "something else connects as this device; run it in one place only"
	case causeUnavailable:
		return "NervesHub cannot look devices up; if it lasts, its operator has to"
	}
	return ""
}

// reasonHeader is where NervesHub explains some refusals
// (NervesHubWeb.DeviceSocket).
const reasonHeader = "Nh-Connection-Error-Reason"

// explained adds to err what the server said about it.
func explained(err error) error {
	if dial, ok := errors.AsType[*phoenix.DialError](err); ok {
		if reason := clean(dial.Header.Get(reasonHeader)); reason != "" {
			return fmt.Errorf("%w (%s)", err, reason)
		}
	}
	return err
}

// causeOf names what went wrong.
func causeOf(err error) cause {
	if dial, ok := errors.AsType[*phoenix.DialError](err); ok {
		switch {
		case dial.Status == http.StatusUnauthorized:
			return causeUnauthorize
		case dial.Status == http.StatusForbidden:
			return causeForbidden
		case dial.Status == http.StatusServiceUnavailable:
			return causeUnavailable
		case dial.Status >= 300 && dial.Status < 400:
			return causeRedirect
		}
		return causeStatus
	}
	if end, ok := errors.AsType[*phoenix.CloseError](err); ok {
		switch end.Code {
		case 1001:
			return causeTaken
		case 1012:
			return causeRestart
		}
		return causeTransport
	}
	if _, ok := errors.AsType[*joinError](err); ok {
		return causeJoin
	}
	switch {
	case errors.Is(err, identity.ErrUnknown), errors.Is(err, identity.ErrUnusable):
		return causeIdentity
	case errors.Is(err, phoenix.ErrTLSRefused):
		return causeCertificate
	case errors.Is(err, phoenix.ErrShed):
		return causeShed
	case errors.Is(err, phoenix.ErrSilent), errors.Is(err, errJoinTimeout):
		return causeSilent
	case isUntrusted(err):
		return causeServer
	}
	return causeTransport
}

const (
	transportMost = 30 * time.Second
	refusalFirst  = 5 * time.Second
	refusalMost   = 5 * time.Minute
	contestFirst  = 30 * time.Second
	contestQuiet  = time.Hour // without a takeover, the contest is forgotten
	dialsApart    = time.Second
)

// A retry decides when a device is dialled again. Its Session owns it.
type retry struct {
	faults   int // transport faults in a row
	refused  int // refusals in a row
	unavail  int // 503 in a row
	taken    int // takeovers shortly after a join
	takenAt  time.Time
	dialedAt time.Time
}

// lasted says the link was joined for so long that what came before does not
// count. Takeovers do: the other owner is still there.
func (r *retry) lasted() { r.faults, r.refused, r.unavail = 0, 0, 0 }

// after returns what the end of a link means and how long to wait. up is how
// long it was joined, 0 if it never was; jitter is uniform in [0, 1).
func (r *retry) after(err error, up time.Duration, now time.Time, jitter float64) (cause, time.Duration) {
	if up >= stable {
		r.lasted()
	}
	why := causeOf(err)
	if why == causeTaken {
		why = r.takenOver(up, now)
	}
	persists := false
	if why == causeUnavailable {
		r.unavail++
		persists = r.unavail > 3 // it may be our headers, not the platform
	}
	var wait time.Duration
	switch {
	case why == causeContested:
		wait = refusalWait(r.taken-1, contestFirst, jitter)
	case why.refuses() || persists:
		r.refused++
		wait = refusalWait(r.refused, refusalFirst, jitter)
	case why == causeShed:
		wait = time.Second + scale(4*time.Second, jitter)
	case why == causeRestart:
		// A node that drains still accepts, only to close again.
		r.faults++
		wait = 5*time.Second + scale(5*time.Second, jitter)
	default:
		wait = scale(min(time.Second<<min(r.faults, 10), transportMost), jitter)
		r.faults++
	}
	if asked := retryAfter(err); asked > wait {
		wait = asked + scale(asked/4, jitter) // it asked everybody
	}
	wait = max(wait, r.dialedAt.Add(dialsApart).Sub(now))
	return why, wait
}

// takenOver tells an operator's reconnect from somebody who has the same
// identity and takes it back each time. The first is answered like any fault.
func (r *retry) takenOver(up time.Duration, now time.Time) cause {
	if now.Sub(r.takenAt) > contestQuiet {
		r.taken = 0
	}
	if up < stable || r.taken > 1 {
		r.taken++
	} else {
		r.taken = 1
	}
	r.takenAt = now
	if r.taken > 1 {
		return causeContested
	}
	return causeTaken
}

// refusalWait doubles from lowest to refusalMost; half of it is jitter.
func refusalWait(n int, lowest time.Duration, jitter float64) time.Duration {
	d := min(lowest<<min(max(n-1, 0), 10), refusalMost)
	return d/2 + scale(d/2, jitter)
}

func scale(d time.Duration, by float64) time.Duration { return time.Duration(float64(d) * by) }

// retryAfter is what the server asks for, at most the longest wait of ours
// (RFC 9110 §10.2.3, seconds form; NervesHub sends none, proxies do).
func retryAfter(err error) time.Duration {
	dial, ok := errors.AsType[*phoenix.DialError](err)
	if !ok {
		return 0
	}
	s, err := strconv.Atoi(dial.Header.Get("Retry-After"))
	if err != nil || s < 0 {
		return 0
	}
	return min(time.Duration(s)*time.Second, refusalMost)
}
