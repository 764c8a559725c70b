package firmware

import "strings"

// NormaliseVersion is the semantic version that NervesHub makes of an ESP-IDF
// PROJECT_VER (or esp_idf_version) at upload: without spaces around, leading
// v's and then V's; one to four numbers become 1.0.0, 1.2.0, 1.2.3 and 1.2.3+4.
// It is false for what cannot be made one. fwup versions are not normalised.
func NormaliseVersion(raw string) (string, bool) {
	v := strings.TrimSpace(raw)
	v = strings.TrimLeft(strings.TrimLeft(v, "v"), "V")
	if semantic(v) {
		return v, true
	}
	parts := strings.Split(v, ".")
	for _, p := range parts {
		if p == "" || strings.Trim(p, "0123456789") != "" {
			return "", false
		}
	}
	switch len(parts) {
	case 1:
		v += ".0.0"
	case 2:
		v += ".0"
	case 4:
		v = strings.Join(parts[:3], ".") + "+" + parts[3]
	}
	return v, semantic(v)
}

// semantic tells a Semantic Versioning 2.0.0 version.
func semantic(v string) bool {
	v, build, hasBuild := strings.Cut(v, "+")
	v, pre, hasPre := strings.Cut(v, "-")
	if hasBuild && !identifiers(build, true) || hasPre && !identifiers(pre, false) {
		return false
	}
	parts := strings.Split(v, ".")
	if len(parts) != 3 {
		return false
	}
	for _, p := range parts {
		if p == "" || strings.Trim(p, "0123456789") != "" || p[0] == '0' && len(p) > 1 {
			return false
		}
	}
	return true
}

// identifiers tells dot-separated identifiers, in which numbers may have
// leading zeros or not (semver.org, rules 9 and 10).
func identifiers(s string, zeros bool) bool {
	for id := range strings.SplitSeq(s, ".") {
		other := strings.Trim(id, "0123456789") != ""
		if id == "" || !zeros && !other && id[0] == '0' && len(id) > 1 {
			return false
		}
		for _, c := range []byte(id) {
			if c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
				return false
			}
		}
	}
	return true
}
