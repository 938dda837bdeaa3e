package limit

import "github.com/backstay/backstay/internal/inherit"

// Switch is a setting that is on, off, or inherited from a wider scope, such as
// by a route from its service; in JSON true, false, or left out.
type Switch = inherit.Switch

// What a [Switch] can be.
const (
	// Inherit leaves the choice to the next wider scope, where it ends as Off.
	Inherit = inherit.Inherit
	// On switches on.
	On = inherit.On
	// Off switches off what a wider scope has switched on.
	Off = inherit.Off
)
