package annotation

import (
	"errors"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Identity says where a pod's certificate comes from when outriggerd does not
// sign it.
const Identity = "outrigger.dev/identity"

const (
	allowedIdentity = "mesh, workload-api:VOLUME/SOCKET or files:VOLUME, where VOLUME is a volume of the pod and SOCKET a file in it"
	byMesh          = "mesh"
	byWorkloadAPI   = "workload-api:"
	byFiles         = "files:"
)

func identitySubject() subject {
	s := subject{
		title: "Who gives a pod its certificate",
		text: "Whoever gives it, the certificate must name the pod's own service account in a trust domain that the mesh accepts, and lead to a root of that: " +
			"[certificates.md](certificates.md#certificates-from-somebody-else) says how.",
		keys: []Key{{
			Name: Identity, On: Pod, Type: "source", Allowed: allowedIdentity,
			Effect: "`workload-api` takes it from a SPIFFE Workload API, such as SPIRE's, `files` from `tls.crt` and `tls.key`, such as those of cert-manager's csi-driver-spiffe; `mesh` has outriggerd sign it",
		}},
	}
	return ofPod(s, "mesh", func(annotations map[string]string) error {
		_, err := ParseIdentity(annotations)
		return err
	})
}

// A Source is where a certificate comes from. The zero Source is the mesh.
type Source struct {
	// Volume is one of the pod's own.
	Volume string
	// Socket is a SPIFFE Workload API's, by its file name in the Volume. Empty
	// means that the Volume holds certificate and key as files.
	Socket string
}

// ParseIdentity reads the annotations of a pod. The error is an [*Error].
func ParseIdentity(annotations map[string]string) (Source, error) {
	text, ok := annotations[Identity]
	if !ok || text == byMesh {
		return Source{}, nil
	}
	source, err := parseSource(text)
	if err != nil {
		return Source{}, podError(Identity, text, allowedIdentity)
	}
	return source, nil
}

func parseSource(text string) (Source, error) {
	var s Source
	named := false
	if rest, ok := strings.CutPrefix(text, byWorkloadAPI); ok {
		s.Volume, s.Socket, named = strings.Cut(rest, "/")
		if !named || !isFileName(s.Socket) {
			return Source{}, errors.New("the socket has no name")
		}
	} else if s.Volume, ok = strings.CutPrefix(text, byFiles); !ok {
		return Source{}, errors.New("not a source")
	}
	if len(validation.IsDNS1123Label(s.Volume)) > 0 {
		return Source{}, errors.New("the volume's name cannot be one")
	}
	return s, nil
}

// isFileName keeps a path inside its folder.
func isFileName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) < 100 && !strings.ContainsFunc(name, func(r rune) bool { return isSpaceOrControl(r) || r == '/' || r == '\\' })
}
