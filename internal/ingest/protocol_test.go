package ingest

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

func TestProtocol(t *testing.T) {
	cases := map[string]struct {
		reason string
		port   corev1.ServicePort
		want   mesh.Protocol
	}{
		"Undeclared":       {reason: "it is found out", port: corev1.ServicePort{Port: 8080}, want: mesh.Auto},
		"NamePrefix":       {reason: "the part before the dash counts", port: corev1.ServicePort{Port: 8080, Name: "http-web"}, want: mesh.HTTP},
		"WholeName":        {reason: "a name without a dash is its own prefix", port: corev1.ServicePort{Port: 8080, Name: "grpc"}, want: mesh.GRPC},
		"PrefixOnly":       {reason: "httpbin is not http", port: corev1.ServicePort{Port: 8080, Name: "httpbin"}, want: mesh.Auto},
		"AppProtocolFirst": {reason: "appProtocol goes before the name", port: corev1.ServicePort{Port: 8080, Name: "http-web", AppProtocol: new("tcp")}, want: mesh.TCP},
		"KubernetesWord":   {reason: "Kubernetes' own words are known", port: corev1.ServicePort{Port: 8080, AppProtocol: new("kubernetes.io/h2c")}, want: mesh.HTTP},
		"WebSocket":        {reason: "a WebSocket begins as HTTP", port: corev1.ServicePort{Port: 8080, AppProtocol: new("kubernetes.io/ws")}, want: mesh.HTTP},
		"AnyCase":          {reason: "words are compared without case", port: corev1.ServicePort{Port: 8080, AppProtocol: new("HTTPS")}, want: mesh.TCP},
		"UnknownWord":      {reason: "a word that means nothing here is passed over", port: corev1.ServicePort{Port: 8080, Name: "grpc-api", AppProtocol: new("example.com/own")}, want: mesh.GRPC},
		"OSMServerFirst":   {reason: "OSM's longest prefix is TCP", port: corev1.ServicePort{Port: 8080, Name: "tcp-server-first-db"}, want: mesh.TCP},
		"ServerFirst":      {reason: "MySQL speaks first", port: corev1.ServicePort{Port: 3306}, want: mesh.TCP},
		"ServerFirstPod":   {reason: "the pod's port tells too", port: corev1.ServicePort{Port: 1, TargetPort: intstr.FromInt32(25)}, want: mesh.TCP},
		"DeclaredOn3306":   {reason: "what is declared goes before what is usual", port: corev1.ServicePort{Port: 3306, Name: "http"}, want: mesh.HTTP},
		"RedisIsSniffed":   {reason: "its clients speak first", port: corev1.ServicePort{Port: 6379}, want: mesh.Auto},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := protocol(&c.port); got != c.want {
				t.Errorf("%s: got %q, want %q", c.reason, got, c.want)
			}
		})
	}
}
