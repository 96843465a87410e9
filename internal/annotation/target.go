package annotation

import "strconv"

// DestinationPort is an annotation on a TrafficTarget: it narrows the target to
// one port of the destination's pods, which versions before v1alpha3 have a field
// for.
const DestinationPort = "outrigger.dev/destination-port"

// RoutePorts is an annotation on a TCPRoute that lists no port. Its one value,
// [OfDestination], says that it means the port of the TrafficTarget's destination,
// as TCPRoutes before v1alpha4 do, which cannot list any. Without it a route that
// lists no port opens none: what is left out must not open anything.
const (
	RoutePorts    = "outrigger.dev/tcp-route-ports"
	OfDestination = "destination"
)

func targetSubject() subject {
	return subject{
		title: "What older versions of SMI have fields for",
		text: "On SMI's own objects, where a version has no field for what another one says; the mesh's conversion writes and reads them. They are not refused at admission. " +
			"A bad value allows nothing, and is reported on the object.",
		keys: []Key{
			{
				Name: DestinationPort, On: TrafficTarget, Type: "number", Allowed: allowedTargetPort, Default: "all ports",
				Effect:    "narrows a TrafficTarget to one port of the pods of its destination, as `destination.port` does in v1alpha1 and v1alpha2",
				Otherwise: "it allows nothing",
				Valid: func(v string) bool {
					_, err := TargetPort(map[string]string{DestinationPort: v})
					return err == nil
				},
			},
			{
				Name: RoutePorts, On: TCPRoute, Type: "word", Allowed: OfDestination, Default: "a route without ports opens none",
				Effect:    "a TCPRoute that lists no port means the port of the TrafficTarget's destination, as in versions before v1alpha4",
				Otherwise: "it opens nothing",
				Valid:     func(v string) bool { return v == OfDestination },
			},
		},
	}
}

const allowedTargetPort = "a port from 1 to 65535"

// PortsOfDestination reports whether a TCPRoute means the destination's port. With
// an error it must open nothing.
func PortsOfDestination(annotations map[string]string) (bool, error) {
	value, ok := annotations[RoutePorts]
	if ok && value != OfDestination {
		return false, &Error{Object: "TCPRoute annotation", Key: RoutePorts, Value: value, Allowed: OfDestination}
	}
	return ok, nil
}

// TargetPort returns the port that a TrafficTarget is narrowed to, zero if it is
// for all. With an error it must allow nothing.
func TargetPort(annotations map[string]string) (uint16, error) {
	value, ok := annotations[DestinationPort]
	if !ok {
		return 0, nil
	}
	port, err := strconv.ParseUint(value, 10, 16)
	if err != nil || port == 0 {
		return 0, &Error{Object: "TrafficTarget annotation", Key: DestinationPort, Value: value, Allowed: allowedTargetPort}
	}
	return uint16(port), nil
}
