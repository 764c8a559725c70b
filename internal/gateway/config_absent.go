package gateway

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// absentParts are the keys whose part of the gateway does not exist, and what
// that part is. They are taken with their default value only, so that nobody
// relies on what is not there.
var absentParts = []struct{ field, part string }{
	{"hub.dialect", "other dialect"},
	{"mqtt.embedded.tls", "MQTT over TLS"},
	{"mqtt.embedded.websocket", "MQTT over websockets"},
	{"mqtt.embedded.users_file", "MQTT passwords"},
	{"onboarding", "onboarding"},
	{"firmware", "firmware server"},
	{"site", "limit on transfers"},
	{"journal", "journal"},
	{"web.token_file", "token on the web page"},
}

// absentInClass is the same within each class.
var absentInClass = []struct{ field, part string }{
	{"delivery", "delivery by the gateway itself"},
	{"resource", "firmware server"},
	{"signature", "firmware server"},
	{"allow_unsigned", "firmware server"},
	{"allow_downgrade", "firmware server"},
	{"patches", "firmware server"},
	{"deltas", "deltas"},
	{"online", "socket for a device that is away"},
	{"overdue", "socket for a device that is away"},
	{"deadline", "deadlines of its own"},
	{"console", "console"},
	{"scripts", "scripts"},
	{"extensions", "choice of extensions"},
	{"place", "place to answer for a device"},
}

// checkAbsent refuses by name what differs from its default and has no part of
// the gateway behind it.
func (r *report) checkAbsent(cfg Config) {
	if cfg.Identity.CA != nil {
		r.refuseMinting("identity")
	}
	usual := Default()
	r.compareAbsent(absentParts, reflect.ValueOf(&cfg).Elem(), reflect.ValueOf(&usual).Elem(), "")
	for _, name := range cfg.classNames() {
		class, plain := cfg.Classes[name], usual.Classes[defaultClass]
		if class.Identity != nil && class.Identity.CA != nil {
			r.refuseMinting(child(child("classes", name), "identity"))
		}
		r.compareAbsent(absentInClass, reflect.ValueOf(&class).Elem(), reflect.ValueOf(&plain).Elem(), child("classes", name))
	}
}

func (r *report) refuseMinting(section string) {
	r.refuse(child(section, "ca"), "this version mints no certificates; keep them in a directory, or use a shared_secret")
}

func (r *report) compareAbsent(table []struct{ field, part string }, got, usual reflect.Value, section string) {
	want := map[string]reflect.Value{}
	leaves(usual, "", func(l leaf) { want[l.field] = l.value })
	leaves(got, "", func(l leaf) {
		for _, row := range table {
			if l.field != row.field && !strings.HasPrefix(l.field, row.field+".") {
				continue
			}
			at := l.field
			if section != "" {
				at = section + "." + l.field
			}
			if usual := want[l.field]; !sameValue(l.value, usual) && !r.wrong[at] {
				r.refuse(at, "found %s, but this version has no %s; delete the line or write %s", show(l.value), row.part, show(usual))
			}
		}
	})
}

// sameValue reports whether two leaves mean the same: no list is an empty one,
// and true where nothing is given means the default (firmware.trust_hub_keys).
func sameValue(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Slice:
		return a.Len() == 0 && b.Len() == 0 || reflect.DeepEqual(a.Interface(), b.Interface())
	case reflect.Pointer:
		return a.IsNil() || a.Elem().Bool()
	}
	return a.Interface() == b.Interface()
}

// show is a value as the file would write it.
func show(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case string:
		return quote(x)
	case []string:
		const enough = 5
		words := make([]string, min(len(x), enough))
		for i := range words {
			words[i] = quote(x[i])
		}
		return "[" + strings.Join(words, ", ") + "]"
	case time.Duration:
		return shortDuration(x)
	case *bool:
		return fmt.Sprint(x == nil || *x)
	}
	return fmt.Sprint(v.Interface())
}

// shortDuration is 1h for 1h0m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
