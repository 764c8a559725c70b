package gateway

import (
	"reflect"
	"slices"
	"strings"
)

// envPrefix begins the name of every variable that overrides the file.
const envPrefix = "GANGLION_"

// envName is the variable that overrides a field: hub.url is GANGLION_HUB_URL.
func envName(field string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(field, ".", "_"))
}

// envFields maps the variables there are to their fields: every scalar outside
// devices and classes.
func envFields() map[string]string {
	all := Config{
		Identity: Identity{Directory: &Directory{}, SharedSecret: &SharedSecret{}, CA: &CA{}},
		MQTT:     MQTT{Embedded: &Embedded{}, External: &External{}},
	}
	out := map[string]string{}
	leaves(reflect.ValueOf(&all).Elem(), "", func(l leaf) {
		if l.value.Kind() != reflect.Slice {
			out[envName(l.field)] = l.field
		}
	})
	return out
}

// decodeEnviron applies the GANGLION_ variables of environ (NAME=VALUE) to cfg.
func (r *report) decodeEnviron(environ []string, cfg *Config) {
	known := envFields()
	for _, entry := range slices.Sorted(slices.Values(environ)) {
		name, text, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) {
			continue
		}
		at := position{variable: oneLine(name)}
		field, ok := known[name]
		if !ok {
			r.refuseAt(at, "", "%s", unknownVariable(name, known))
			continue
		}
		r.given[field] = at
		r.noteChoice(reflect.ValueOf(cfg).Elem(), field, at)
		v := settable(reflect.ValueOf(cfg).Elem(), field)
		if v.Kind() == reflect.Pointer {
			v = allocated(v)
		}
		if err := setScalar(v, text); err != nil {
			r.refuse(field, "%v", err)
		}
	}
}

// noteChoice says of a section that only a variable gives where it is: there. So
// is what its presence breaks, as a choice among alternatives.
func (r *report) noteChoice(v reflect.Value, field string, at position) {
	section := ""
	for key := range strings.SplitSeq(field, ".") {
		if v.Kind() == reflect.Pointer {
			if v.IsNil() {
				r.given[section] = at
				r.chosen[parent(section)] = at
				return
			}
			v = v.Elem()
		}
		_, i, _ := fieldNamed(v.Type(), key)
		v, section = v.Field(i), child(section, key)
	}
}

func unknownVariable(name string, known map[string]string) string {
	if strings.HasPrefix(name, envPrefix+"CLASSES_") || strings.HasPrefix(name, envPrefix+"DEVICES") {
		return "unknown variable; devices and classes can be set only in the file"
	}
	names := make([]string, 0, len(known))
	for k := range known {
		names = append(names, strings.TrimPrefix(k, envPrefix))
	}
	slices.Sort(names)
	if near := nearest(strings.TrimPrefix(name, envPrefix), names); near != "" {
		return "unknown variable; did you mean " + envPrefix + near + "?"
	}
	return "unknown variable; unset it, or name a key of the file in capitals, as " + envName("hub.url") + " for hub.url"
}

// settable is the field of v with a dotted name, its sections made if need be.
func settable(v reflect.Value, field string) reflect.Value {
	for key := range strings.SplitSeq(field, ".") {
		if v.Kind() == reflect.Pointer {
			v = allocated(v)
		}
		_, i, _ := fieldNamed(v.Type(), key)
		v = v.Field(i)
	}
	return v
}
