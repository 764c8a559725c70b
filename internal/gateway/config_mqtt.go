package gateway

import (
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

func (r *report) checkMQTT(m MQTT) {
	r.checkPrefix(m.Prefix)
	if m.Embedded != nil {
		r.checkEmbedded(*m.Embedded)
	}
	if m.External != nil {
		r.checkExternal(*m.External)
	}
	switch {
	case m.Embedded != nil && m.External != nil:
		r.say("mqtt", "found embedded and external; keep exactly one")
	case m.Embedded == nil && m.External == nil:
		r.say("mqtt", "found neither embedded nor external; give one")
	}
}

// checkPrefix wants a topic name [MQTT-4.7.3-1] without wildcards
// [MQTT-4.7.1-1], outside the $ topics [MQTT-4.7.2-1], without empty levels.
func (r *report) checkPrefix(prefix string) {
	const field, longest = "mqtt.prefix", 128
	levels := "/" + prefix + "/"
	switch {
	case strings.ContainsAny(prefix, "+#"):
		r.say(field, "found %s; wildcards (+ and #) cannot be in the name of a topic", quote(prefix))
	case strings.HasPrefix(prefix, "$"):
		r.say(field, "found %s; topics that begin with $ are the broker's own", quote(prefix))
	case prefix == "" || strings.Contains(levels, "//"):
		r.say(field, "found %s; write it like nh or site/nh, no level empty", quote(prefix))
	case len(prefix) > longest || !utf8.ValidString(prefix) || strings.ContainsFunc(prefix, unicode.IsControl):
		r.say(field, "found %s, want at most %d bytes, none of them a control character", quote(prefix), longest)
	}
}

func (r *report) checkEmbedded(e Embedded) {
	const section = "mqtt.embedded"
	if e.Listen == "" {
		r.say(section+".listen", "found nothing, so no device could connect; write 127.0.0.1:1883")
	} else if host, ok := r.checkListen(section+".listen", e.Listen); ok && !loopback(host) && e.Anonymous && !e.Insecure {
		r.say(section+".listen", "found %s, where every machine on the network could be any device (anonymous: true); listen on 127.0.0.1, or write insecure: true to allow it", quote(e.Listen))
	}
	if !e.Anonymous {
		r.say(section+".anonymous", "found false, and without a users_file no device could connect; delete the line")
	}
	const most = 1_000_000
	if e.MaxDevices < 1 || e.MaxDevices > most {
		r.say(section+".max_devices", "found %d, want 1 to %d", e.MaxDevices, most)
	}
}

func (r *report) checkExternal(e External) {
	const section = "mqtt.external"
	u, err := url.Parse(e.URL)
	switch {
	case e.URL == "":
		r.say(section+".url", "found nothing; name the broker: mqtts://HOST:8883")
	case err == nil && u.User != nil: // and not quoted: it may hold a password
		r.say(section+".url", "found a user name in it; use username and password_file")
	case err != nil || u.Scheme != "mqtt" && u.Scheme != "mqtts" || u.Hostname() == "" || !goodPort(u):
		r.say(section+".url", "want mqtts://HOST:8883%s", foundURL(err, e.URL))
	case u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/":
		r.say(section+".url", "found %s; delete what follows the port", quote(e.URL))
	case u.Scheme == "mqtt" && !loopback(u.Hostname()):
		r.say(section+".url", "found mqtt:// to another machine, which would carry firmware URLs and passwords in the clear; write mqtts://")
	case u.Scheme == "mqtt" && (e.CAFile != "" || e.CertFile != "" || e.KeyFile != ""):
		r.say(section+".url", "found mqtt://, which uses no certificates; write mqtts://, or delete ca_file, cert_file and key_file")
	}
	if (e.PasswordFile != "" || e.Password != "") && e.Username == "" {
		r.say(section+".username", "found nothing, and MQTT 3.1.1 takes no password without one; give it") // [MQTT-3.1.2-22]
	}
	if (e.CertFile == "") != (e.KeyFile == "") {
		r.say(section+".cert_file", "found only one of cert_file and key_file; give both or neither")
	}
	r.checkText(section+".client_id", e.ClientID)
	r.checkText(section+".username", e.Username)
}

// foundURL shows a URL that could be parsed; another may hide a password
// anywhere.
func foundURL(err error, u string) string {
	if err != nil {
		return ", and what was found is no URL"
	}
	return ", found " + quote(u)
}
