package inherit

import "errors"

// Switch is a setting that is on, off, or inherited; in JSON true, false, or left
// out. Where it is inherited to the end, it is off.
type Switch uint8

// What a Switch can be.
const (
	// Inherit leaves the choice to the next wider scope.
	Inherit Switch = iota
	// On switches on.
	On
	// Off switches off what a wider scope has switched on.
	Off
)

// Valid reports whether s is one of the three.
func (s Switch) Valid() bool { return s <= Off }

// String returns "on", "off" or "".
func (s Switch) String() string {
	switch s {
	case On:
		return "on"
	case Off:
		return "off"
	default:
		return ""
	}
}

// MarshalJSON returns true, false or, for Inherit, null.
func (s Switch) MarshalJSON() ([]byte, error) {
	switch s {
	case On:
		return []byte("true"), nil
	case Off:
		return []byte("false"), nil
	default:
		return []byte("null"), nil
	}
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *Switch) UnmarshalJSON(data []byte) error {
	switch string(data) {
	case "true":
		*s = On
	case "false":
		*s = Off
	case "null":
		*s = Inherit
	default:
		return errors.New("want true or false")
	}
	return nil
}
