package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// This file reads the short and JSON forms of what devices publish. Everything
// here is checked so far that NervesHub cannot crash on it.

// A report is a status or progress in NervesHub's words.
type report struct {
	word   word
	reason string
	delay  time.Duration // of rescheduled; negative: not said
	value  int           // percent; -1: not said
}

// A word is a status NervesHub knows (its UpdateStatus enum), in the order an
// update goes through them.
type word int

const (
	none word = iota
	received
	started
	downloading
	updating
	completed
	failed
	ignored
	rescheduled
)

var words = [...]string{received: "received", started: "started", downloading: "downloading", updating: "updating",
	completed: "completed", failed: "failed", ignored: "ignored", rescheduled: "rescheduled"}

func (w word) String() string { return words[w] }

// terminal words end an update as far as the device is concerned.
func (w word) terminal() bool { return w >= completed }

// spoken are the words a device may use: NervesHub's, and those of earlier
// protocols and clients, which would crash its channel today.
var spoken = map[string]word{
	"received": received, "started": started, "downloading": downloading, "updating": updating,
	"completed": completed, "failed": failed, "ignored": ignored, "rescheduled": rescheduled,
	"idle": none, "unknown": none, "fwup_error": failed, "update_failed": failed,
	"update_rescheduled": rescheduled, "reschedule": rescheduled, "fwup_complete": completed,
}

// parseStatus reads "failed bad flash", "rescheduled 3600000 night shift" or a
// JSON object with status (or state), reason and delay_for in milliseconds.
func parseStatus(p []byte) (report, *refusal) {
	var j struct {
		Status   *string `json:"status"`
		State    *string `json:"state"`
		Reason   *string `json:"reason"`
		DelayFor *number `json:"delay_for"`
		Progress *number `json:"progress"`
	}
	r := report{delay: -1, value: -1}
	said, rest := "", ""
	if isObject(p) {
		if err := json.Unmarshal(p, &j); err != nil {
			return r, &refusal{codeBadPayload, jsonFault(err)}
		}
		switch {
		case j.Status != nil:
			said = *j.Status
		case j.State != nil:
			said = *j.State
		default:
			return r, &refusal{codeBadPayload, "status is missing"}
		}
		if j.Reason != nil {
			rest = *j.Reason
		}
		if j.Progress != nil {
			r.value = j.Progress.percent()
		}
	} else {
		said, rest, _ = strings.Cut(strings.TrimSpace(string(p)), " ")
	}
	w, ok := spoken[said]
	if !ok {
		return r, &refusal{codeUnknownStatus, fmt.Sprintf("%q is not a status", clean(said))}
	}
	r.word = w
	if w == rescheduled {
		switch {
		case j.DelayFor != nil:
			r.delay = j.DelayFor.milliseconds()
		case !isObject(p):
			ms, reason, _ := strings.Cut(rest, " ")
			if n, err := parseNumber([]byte(ms)); err == nil {
				r.delay, rest = n.milliseconds(), reason
			}
		}
	}
	r.reason = clean(rest)
	return r, nil
}

// parseProgress reads "42" or {"value":42,"stage":"updating"}.
func parseProgress(p []byte) (report, *refusal) {
	r := report{word: updating, delay: -1}
	var n number
	if isObject(p) {
		var j struct {
			Value *number `json:"value"`
			Stage *string `json:"stage"`
		}
		switch err := json.Unmarshal(p, &j); {
		case err != nil:
			return r, &refusal{codeBadPayload, jsonFault(err)}
		case j.Value == nil:
			return r, &refusal{codeBadPayload, "value is missing"}
		}
		n = *j.Value
		if j.Stage != nil {
			if r.word = spoken[*j.Stage]; r.word != downloading && r.word != updating {
				return r, &refusal{codeUnknownStatus, fmt.Sprintf("stage %q is neither downloading nor updating", clean(*j.Stage))}
			}
		}
	} else {
		var err error
		if n, err = parseNumber(bytes.TrimSpace(p)); err != nil {
			return r, &refusal{codeBadPayload, err.Error()}
		}
	}
	r.value = n.percent()
	return r, nil
}

// An iface is how a device reaches the network, in words NervesHub's filters
// recognise.
type iface struct {
	Name  string
	Types []string
}

// interfaceNames has the prefixes NervesHub tells interfaces by.
var interfaceNames = map[string]string{"wifi": "wlan0", "ethernet": "eth0", "cellular": "wwan0"}

// parseInterface reads "wifi" or {"interface":"wifi","types":["wifi"]}.
func parseInterface(p []byte) (iface, *refusal) {
	var j struct {
		Interface string   `json:"interface"`
		Types     []string `json:"types"`
	}
	if isObject(p) {
		if err := json.Unmarshal(p, &j); err != nil {
			return iface{}, &refusal{codeBadPayload, jsonFault(err)}
		}
	} else {
		j.Interface = strings.TrimSpace(string(p))
	}
	if j.Interface == "" || !plain(j.Interface) || len(j.Types) > 8 {
		return iface{}, &refusal{codeBadPayload, "interface must be a short name such as wifi, with at most 8 types"}
	}
	for _, t := range j.Types {
		if t == "" || !plain(t) {
			return iface{}, &refusal{codeBadPayload, "types must be short names such as wifi"}
		}
	}
	i := iface{Name: j.Interface, Types: j.Types}
	if name, ok := interfaceNames[j.Interface]; ok {
		i.Name = name
		if i.Types == nil {
			i.Types = []string{j.Interface}
		}
	}
	return i, nil
}

// A number is a JSON number that is finite. NervesHub's crash on a fraction is
// avoided by rounding down.
type number float64

func (n *number) UnmarshalJSON(b []byte) error {
	v, err := parseNumber(b)
	*n = v
	return err
}

func parseNumber(b []byte) (number, error) {
	if len(b) == 0 || (b[0] != '-' && (b[0] < '0' || b[0] > '9')) || !json.Valid(b) {
		return 0, fmt.Errorf("%.40q is not a number", b)
	}
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, fmt.Errorf("%.40q is not a number", b)
	}
	return number(f), nil
}

// percent rounds down and clamps to 0…100.
func (n number) percent() int { return int(math.Floor(min(max(float64(n), 0), 100))) }

// maxDelay bounds a reschedule: a week is a maintenance window, more is a typo.
const maxDelay = 7 * 24 * time.Hour

func (n number) milliseconds() time.Duration {
	return time.Duration(min(max(float64(n), 0), float64(maxDelay/time.Millisecond))) * time.Millisecond
}

func isObject(p []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(p), []byte("{")) }

// jsonFault says what is wrong with a JSON payload, without Go's own names.
func jsonFault(err error) string {
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Sprintf("%s must not be a %s", wrong.Field, wrong.Value)
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("not JSON: %v at byte %d", syntax, syntax.Offset)
	}
	return err.Error()
}
