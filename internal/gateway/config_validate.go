package gateway

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Validate reports, as Mistakes, everything wrong with the values of c. It
// looks at no file; [Load] does, and validates too.
func (c Config) Validate() error {
	r := newReport("")
	r.checkAbsent(c)
	r.check(c)
	return r.err()
}

// say refuses a field unless it, or the section it is in, has been refused
// before: a mistake about a section comes after those about its fields.
func (r *report) say(field, format string, args ...any) {
	if !r.refused(field) {
		r.refuse(field, format, args...)
	}
}

func (r *report) check(c Config) {
	r.checkText("id", c.ID)
	if c.StateDir == "" {
		r.say("state_dir", "found nothing; name a directory")
	}
	r.checkHub(c.Hub)
	r.checkIdentity(c.Hub, c.Identity, "identity")
	r.checkMQTT(c.MQTT)
	if c.Web.Listen != "" {
		r.checkListen("web.listen", c.Web.Listen)
	}
	if e := c.MQTT.Embedded; e != nil && e.Listen == c.Web.Listen && e.Listen != "" && !strings.HasSuffix(e.Listen, ":0") {
		r.say("web.listen", "found %s, which is mqtt.embedded.listen too; choose another port", quote(c.Web.Listen))
	}
	r.checkClasses(c)
	r.checkOneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	r.checkOneOf("log.format", c.Log.Format, "text", "json")
}

func (r *report) checkHub(h Hub) {
	u, err := url.Parse(h.URL)
	switch {
	case err != nil || u.Scheme != "ws" && u.Scheme != "wss" || u.Hostname() == "":
		r.say("hub.url", "found %s, want wss://HOST/device-socket/websocket", quote(h.URL))
	case u.User != nil:
		r.say("hub.url", "found a user name in it; devices prove themselves by identity, delete the part before @")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		r.say("hub.url", "found %s; delete everything from the ? or # on (vsn is added by itself)", quote(h.URL))
	case !goodPort(u):
		r.say("hub.url", "found port %s, want 1 to 65535", quote(u.Port()))
	case u.Path == "" || u.Path == "/":
		r.say("hub.url", "found no path; NervesHub's is /device-socket/websocket")
	case u.Scheme == "ws" && !loopback(u.Hostname()):
		r.say("hub.url", "found ws:// to another machine, which would carry signatures and firmware URLs in the clear; write wss://")
	}
	r.checkRange("hub.heartbeat", h.Heartbeat, time.Second, 2*time.Minute)
	if !(h.DialsPerSecond > 0 && h.DialsPerSecond <= 100) { // NaN is neither
		r.say("hub.dials_per_second", "found %v, want more than 0 and at most 100 (NervesHub sheds above 100, for everybody)", h.DialsPerSecond)
	}
}

// checkIdentity wants exactly one way for devices to prove themselves, and one
// that the URL can carry.
func (r *report) checkIdentity(h Hub, id Identity, field string) {
	var given []string
	if d := id.Directory; d != nil {
		given = append(given, "directory")
		if d.Path == "" {
			r.say(field+".directory.path", "found nothing; name the directory with <device>.pem and <device>-key.pem")
		}
		if strings.HasPrefix(h.URL, "ws://") {
			r.say(field+".directory", "found certificates, and hub.url is ws://, which carries none; use wss:// or a shared_secret")
		}
	}
	if s := id.SharedSecret; s != nil {
		given = append(given, "shared_secret")
		if text := keyMistake(s.Key); text != "" {
			r.say(field+".shared_secret.key", "%s", text)
		}
		if s.SecretFile == "" && s.Secret == "" {
			r.say(field+".shared_secret.secret_file", "found nothing; name the file that holds the secret, mode 0600")
		}
	}
	if id.CA != nil {
		given = append(given, "ca")
	}
	switch len(given) {
	case 0:
		r.say(field, "nothing given; say how devices prove themselves to NervesHub: directory: {path: devices}, or shared_secret: {key: nhp_…, secret_file: …}")
	case 1:
	default:
		r.say(field, "found %s; keep exactly one", strings.Join(given, " and "))
	}
}

// keyMistake is what is wrong with the key of a shared secret.
func keyMistake(key string) string {
	blank := strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c > '~' })
	if !blank && (strings.HasPrefix(key, "nhp_") || strings.HasPrefix(key, "nhd_")) {
		return ""
	}
	return fmt.Sprintf("found %s, want nhp_… (a product's) or nhd_… (a device's) as NervesHub's settings show it", quote(key))
}

func (r *report) checkClasses(c Config) {
	names := c.classNames()
	for _, name := range names {
		field, class := child("classes", name), c.Classes[name]
		r.checkRange(field+".linger", class.Linger, 0, time.Hour)
		r.checkRange(field+".command_ttl", class.CommandTTL, time.Second, 7*24*time.Hour)
		r.checkRange(field+".reschedule", class.Reschedule, time.Second, 7*24*time.Hour)
		r.checkText(field+".product", class.Product)
		r.checkText(field+".platform", class.Platform)
		r.checkText(field+".architecture", class.Architecture)
		if class.Identity != nil {
			r.checkIdentity(c.Hub, *class.Identity, field+".identity")
		}
		if !plainName(name) {
			r.say(field, "found a class named %s; use letters, digits, _ and -, at most 64", quote(name))
		}
	}
	if _, ok := c.Classes[defaultClass]; !ok {
		r.say("classes", "found no class named default; begin with Default()")
	}
	for i, rule := range c.Devices {
		field := fmt.Sprintf("devices[%d]", i)
		if rule.Match == "" {
			r.say(field+".match", "found nothing; write a device's identifier, or a pattern such as soil-*")
		} else if _, err := path.Match(rule.Match, ""); err != nil {
			r.say(field+".match", "found %s, which is no pattern; write soil-*, probe-? or node-[0-9]", quote(rule.Match))
		}
		if _, ok := c.Classes[rule.Class]; !ok {
			r.say(field+".class", "found %s; %s", quote(rule.Class), whichClass(rule.Class, names))
		}
	}
}

func whichClass(name string, known []string) string {
	if near := nearest(name, known); near != "" {
		return "did you mean " + near + "?"
	}
	const enough = 8
	return "the classes are " + oneLine(strings.Join(known[:min(len(known), enough)], ", "))
}

func (r *report) checkOneOf(field, got string, want ...string) {
	if !slices.Contains(want, got) {
		r.say(field, "found %s, want %s", quote(got), strings.Join(want, ", "))
	}
}

func (r *report) checkRange(field string, got, least, most time.Duration) {
	if got < least || got > most {
		r.say(field, "found %s, want %s to %s", shortDuration(got), shortDuration(least), shortDuration(most))
	}
}

// checkText wants text that a log, a page and NervesHub's database can show.
func (r *report) checkText(field, got string) {
	const longest = 255 // characters, NervesHub's columns
	if !utf8.ValidString(got) || strings.ContainsFunc(got, unicode.IsControl) || utf8.RuneCountInString(got) > longest {
		r.say(field, "found %s, want at most %d characters, none of them a control character", quote(got), longest)
	}
}

// checkListen wants HOST:PORT, the host an address, a name or nothing.
func (r *report) checkListen(field, got string) (host string, ok bool) {
	host, port, err := net.SplitHostPort(got)
	n, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || portErr != nil || strings.ContainsAny(host, "/ ") || n != 0 && strings.HasPrefix(port, "0") {
		r.say(field, "found %s, want HOST:PORT such as 127.0.0.1:1883", quote(got))
		return "", false
	}
	return host, true
}

// goodPort reports whether the port of u is none or one to dial.
func goodPort(u *url.URL) bool {
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil && n > 0
}

// loopback reports whether a host is this machine and nobody else's. A name
// other than localhost is not looked up: it may move.
func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
