package ingest

import (
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// protocol returns what a Service port speaks: what its appProtocol says, else
// the part of its name before the first dash, else what is usual for its number,
// else it is left to be found out. Words that mean nothing here are passed over.
func protocol(p *corev1.ServicePort) mesh.Protocol {
	if p.AppProtocol != nil {
		if proto, ok := protocolWord(*p.AppProtocol); ok {
			return proto
		}
	}
	prefix, _, _ := strings.Cut(p.Name, "-")
	if proto, ok := protocolWord(prefix); ok {
		return proto
	}
	if serverFirst(p.Port) || serverFirst(p.TargetPort.IntVal) {
		return mesh.TCP
	}
	return mesh.Auto
}

// protocolWord returns what a word means. TLS that the application speaks itself
// is opaque. OSM's "tcp-server-first" needs no word of its own: a port that is
// declared as TCP is never sniffed.
func protocolWord(word string) (mesh.Protocol, bool) {
	switch strings.ToLower(word) {
	case "http", "http2", "h2c", "kubernetes.io/h2c", "ws", "kubernetes.io/ws":
		return mesh.HTTP, true
	case "grpc":
		return mesh.GRPC, true
	case "tcp", "tcp-server-first", "tls", "https", "wss", "kubernetes.io/wss",
		"amqp", "ftp", "imap", "kafka", "ldap", "mongo", "mongodb", "mqtt", "mysql", "nats",
		"pop3", "postgres", "postgresql", "redis", "smtp", "ssh":
		return mesh.TCP, true
	default:
		return mesh.Auto, false
	}
}

// serverFirst reports whether, by custom, the server speaks first on a port, so
// that sniffing would hold each connection up. PostgreSQL is here for the safe
// side. What clients open, as Redis, is told from HTTP by its first bytes.
func serverFirst(port int32) bool {
	switch port {
	case 21, 22, 25, 110, 143, 587, 3306, 4222, 5432:
		return true
	default:
		return false
	}
}
