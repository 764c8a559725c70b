package mqtt

import "strings"

// Topics is where on a broker the devices live:
//
//	<prefix>/<device>/up/<name>      the device speaks
//	<prefix>/<device>/down/<name>    the gateway speaks
//	<prefix>/gateway                 retained: is the gateway there
type Topics struct{ Prefix string }

// Of is the topic a Message is published to.
func (t Topics) Of(m Message) string {
	if m.Device == "" {
		return t.Prefix + "/" + m.Name
	}
	return t.Prefix + "/" + m.Device + "/down/" + m.Name
}

// Up splits a topic a device published to. ok is false for every other topic,
// and when the device part is not an identifier.
func (t Topics) Up(topic string) (device, name string, ok bool) {
	rest, ok := strings.CutPrefix(topic, t.Prefix+"/")
	if !ok {
		return "", "", false
	}
	device, rest, _ = strings.Cut(rest, "/")
	name, ok = strings.CutPrefix(rest, "up/")
	if !ok || name == "" || !ValidID(device) {
		return "", "", false
	}
	return device, name, true
}

// maxID is the longest identifier, bytes: what an X.509 common name holds
// (RFC 5280 appendix A.1, ub-common-name).
const maxID = 64

// ValidID reports whether id may name a device: [A-Za-z0-9][A-Za-z0-9._-]{0,63}
// and not "gateway", whose topic is the gateway's own. The grammar leaves out
// every character that means something in a topic filter, a path or a URL.
func ValidID(id string) bool {
	if id == "" || len(id) > maxID || id == "gateway" {
		return false
	}
	for i := range len(id) {
		c := id[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return true
}
