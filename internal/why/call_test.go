package why

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/golden"
)

const (
	osm       = "the-bookstore-of-osm"
	only      = "only-what-a-traffic-target-names"
	sniffed   = "undeclared-port-is-sniffed"
	allowFrom = "allow-from-without-smi-objects"
	byService = "services-override-their-namespace"
	wantMTLS  = "callers-that-want-mutual-tls"
	plainText = "plain-text-is-let-in-port-by-port"

	locked = "egress-denied-but-the-api-server-is-reachable"
)

func TestCall(t *testing.T) {
	const agent = "user-agent: Go-http-client/1.1"
	cases := map[string]struct {
		reason, story string
		q             Question
		want          Verdict
		why           Reason
		noChange      bool // that a denied call could be allowed by
	}{
		"rule":            {story: osm, reason: "the demo's call, with the shares of its split", q: Question{Caller: "bookbuyer/bookbuyer-0", URL: "http://bookstore.bookstore:14001/books-bought?x=1", Headers: []string{agent, "client-app: bookbuyer"}}, want: Allowed, why: ByRule},
		"no-grant":        {story: osm, reason: "the thief is not told about the store", q: Question{Caller: "bookthief/bookthief-0", URL: "http://bookstore.bookstore:14001/books-bought", Headers: []string{agent, "client-app: bookbuyer"}}, want: Denied, why: NoGrant},
		"no-grant-at-all": {story: osm, reason: "nobody may do this, so new objects are proposed", q: Question{Caller: "bookthief/bookthief-0", Method: "DELETE", URL: "http://bookstore.bookstore:14001/a'b"}, want: Denied, why: NoGrant},
		"other-method":    {story: osm, reason: "the rule is for another method", q: Question{Caller: "bookbuyer/bookbuyer-0", Method: "POST", URL: "http://bookstore.bookstore:14001/buy-a-book/new"}, want: Denied, why: NoRule},
		"header-missing":  {story: osm, reason: "the rule wants headers that nobody mentioned", q: Question{Caller: "bookbuyer/bookbuyer-0", URL: "http://bookstore.bookstore.svc.cluster.local:14001/books-bought", Headers: []string{"client-app: bookthief"}}, want: Denied, why: NoRule},
		"host-rule":       {story: osm, reason: "a rule about the host is compared with its port", q: Question{Caller: "bookstore/bookstore-v1-0", Method: "POST", URL: "http://bookwarehouse.bookwarehouse:14001/"}, want: Denied, why: NoRule},
		"host-header":     {story: osm, reason: "a host header of one's own fits the rule", q: Question{Caller: "bookstore/bookstore-v1-0", Method: "POST", URL: "http://bookwarehouse.bookwarehouse:14001/", Headers: []string{"Host: bookwarehouse.bookwarehouse"}}, want: Allowed, why: ByRule},
		"by-address":      {story: osm, reason: "a ClusterIP means its Service", q: Question{Caller: "spiffe://cluster.local/ns/bookbuyer/sa/bookbuyer", URL: "http://10.96.0.3:14001/buy-a-book/new"}, want: Allowed, why: ByRule},
		"account":         {story: osm, reason: "a service account asks as its pods do", q: Question{Caller: "sa/bookbuyer", Namespace: "bookbuyer", URL: "bookstore-v2.bookstore.svc:14001/buy-a-book/new"}, want: Allowed, why: ByRule},
		"headless-host":   {story: osm, reason: "a StatefulSet's name for one pod", q: Question{Caller: "bookwarehouse/bookwarehouse-0", URL: "tcp://mysql-0.mysql:3306"}, want: Allowed, why: ByTCPGrant},
		"headless-denied": {story: osm, reason: "egress is denied too, and still a grant is what is missing", q: Question{Caller: "bookstore/bookstore-v1-0", URL: "tcp://mysql-0.mysql.bookwarehouse:3306"}, want: Denied, why: NoGrant},
		"egress-by-mesh":  {story: osm, reason: "the mesh's own setting denies it", q: Question{Caller: "bookbuyer/bookbuyer-0", URL: "https://www.example.com"}, want: Denied, why: EgressDenied},
		"empty-address":   {story: osm, reason: "no Service has the address", q: Question{Caller: "bookbuyer/bookbuyer-0", URL: "http://10.96.77.77/"}, want: Denied, why: NothingThere, noChange: true},
		"unknown-port":    {story: osm, reason: "the Service has another port", q: Question{Caller: "bookbuyer/bookbuyer-0", URL: "http://bookstore.bookstore/"}, want: Denied, why: NothingThere, noChange: true},

		"egress-denied":     {story: locked, reason: "the namespace denies it", q: Question{Caller: "locked/app-0", URL: "https://api.example.com/v1"}, want: Denied, why: EgressDenied},
		"egress-service":    {story: locked, reason: "a Service outside the mesh is egress", q: Question{Caller: "locked/app-0", URL: "http://old.legacy/"}, want: Denied, why: EgressDenied},
		"egress-allowed":    {story: locked, reason: "another namespace may", q: Question{Caller: "free/app-0", URL: "http://old.legacy/"}, want: Allowed, why: EgressAllowed},
		"egress-name":       {story: locked, reason: "and names that the cluster does not know", q: Question{Caller: "free/app-0", URL: "https://api.example.com"}, want: Allowed, why: EgressAllowed},
		"egress-headless":   {story: locked, reason: "pods of a headless Service outside", q: Question{Caller: "free/app-0", URL: "http://old-headless.legacy"}, want: Allowed, why: EgressAllowed},
		"api-server":        {story: locked, reason: "always reachable", q: Question{Caller: "locked/app-0", URL: "https://kubernetes.default.svc"}, want: Allowed, why: AlwaysReachable},
		"dns-over-tcp":      {story: locked, reason: "long answers must come", q: Question{Caller: "locked/app-0", URL: "tcp://kube-dns.kube-system:53"}, want: Allowed, why: AlwaysReachable},
		"loopback":          {story: locked, reason: "nothing leaves the pod", q: Question{Caller: "locked/app-0", URL: "http://localhost:8080"}, want: Allowed, why: OwnPod},
		"own-address":       {story: locked, reason: "nor here", q: Question{Caller: "locked/app-0", URL: "http://10.1.1.1:8080"}, want: Allowed, why: OwnPod},
		"permissive":        {story: "everything-may-talk-in-permissive-mode", reason: "everyone of the mesh may", q: Question{Caller: "shop/web-0", URL: "http://invoices.billing/"}, want: Allowed, why: PermissiveMode},
		"nobody-there":      {story: "everything-may-talk-in-permissive-mode", reason: "allowed, and still of no use", q: Question{Caller: "shop/web-0", URL: "http://empty.billing/"}, want: Allowed, why: NoEndpoint},
		"pod-ip":            {story: "everything-may-talk-in-permissive-mode", reason: "the pod of a Service is not called by its address", q: Question{Caller: "shop/web-0", URL: "http://10.1.2.1:9090"}, want: Denied, why: PlainRefused, noChange: true},
		"port-not-served":   {story: "everything-may-talk-in-permissive-mode", reason: "no Service leads there", q: Question{Caller: "shop/web-0", URL: "http://10.1.2.1:9091"}, want: Denied, why: PortClosed, noChange: true},
		"half-meshed":       {story: "endpoints-that-are-not-in-the-mesh", reason: "two transports behind one name", q: Question{Caller: "half/app-0", URL: "http://web"}, want: Allowed, why: PermissiveMode},
		"strict-half":       {story: "endpoints-that-are-not-in-the-mesh", reason: "in enforced mode those without a proxy get nothing", q: Question{Caller: "half/app-0", URL: "http://web.strict"}, want: Allowed, why: ByRule},
		"typo-holds":        {story: "namespaces-override-the-mesh", reason: "a bad value is told", q: Question{Caller: "typo/web-0", URL: "https://example.com"}, want: Denied, why: EgressDenied},
		"split-by-header":   {story: "split-narrowed-to-some-requests", reason: "a tester goes to v2", q: Question{Caller: "shop/app-0", URL: "http://web/", Headers: []string{"X-Tester: yes"}}, want: Allowed, why: PermissiveMode},
		"split-not-for-me":  {story: "split-narrowed-to-some-requests", reason: "others to the apex", q: Question{Caller: "shop/app-0", URL: "http://web/"}, want: Allowed, why: PermissiveMode},
		"split-leaves-out":  {story: "split-leaves-out-a-backend-that-may-not-be-called", reason: "the other backend's share moves", q: Question{Caller: "bookstore/buyer-0", URL: "http://bookstore.bookstore/"}, want: Allowed, why: ByRule},
		"split-names-all":   {story: "split-leaves-out-what-cannot-take-calls", reason: "each backend that gets nothing, and why; and what limits the other", q: Question{Caller: "shop/app-0", URL: "http://web/"}, want: Allowed, why: ByRule},
		"split-zero":        {story: "split-among-one-account-with-zero-weights", reason: "a weight of zero leaves nobody out", q: Question{Caller: "shop/app-0", URL: "http://web/"}, want: Allowed, why: ByRule},
		"split-zero-tcp":    {story: "split-among-one-account-with-zero-weights", reason: "by TCP too", q: Question{Caller: "shop/app-0", URL: "tcp://web:3306"}, want: Allowed, why: ByTCPGrant},
		"tcp-split":         {story: "tcp-split-by-endpoint-weight", reason: "shares of connections", q: Question{Caller: "data/app-0", URL: "tcp://db:5432"}, want: Allowed, why: PermissiveMode},
		"settings":          {story: "service-overrides-the-traffic-settings-of-its-namespace", reason: "what the Service and its namespace say of the call", q: Question{Caller: "front/app-0", URL: "http://web.shop/"}, want: Allowed, why: PermissiveMode},
		"settings-of-tcp":   {story: "limits-and-outliers", reason: "what means nothing for connections is left out", q: Question{Caller: "shop/app-0", URL: "tcp://db:5432"}, want: Allowed, why: PermissiveMode},
		"server-first":      {story: "server-first-database", reason: "a TCP port does not ask for a path", q: Question{Caller: "data/app-0", URL: "tcp://mysql:3306"}, want: Allowed, why: ByTCPGrant},
		"tcp-denied":        {story: "server-first-database", reason: "HTTP rules open no TCP port", q: Question{Caller: "data/other-0", URL: "tcp://mysql:3306"}, want: Denied, why: NoGrant},
		"sniffed-http":      {story: sniffed, reason: "HTTP on an undeclared port", q: Question{Caller: "shop/http-0", URL: "http://api/v1/x"}, want: Allowed, why: ByRule},
		"sniffed-tcp":       {story: sniffed, reason: "TLS on an undeclared port is TCP", q: Question{Caller: "shop/raw-0", URL: "https://api:80/"}, want: Allowed, why: ByTCPGrant},
		"sniffed-not-both":  {story: sniffed, reason: "an HTTP grant opens no TCP", q: Question{Caller: "shop/both-0", URL: "tcp://api:80"}, want: Denied, why: NoGrant},
		"dot-segments":      {story: sniffed, reason: "the path is compared as it arrives", q: Question{Caller: "shop/http-0", URL: "http://api/v1/../admin"}, want: Denied, why: NoRule},
		"twice-normalised":  {story: sniffed, reason: "the second proxy reads what the first made of it", q: Question{Caller: "shop/http-0", URL: "http://api/v1/%2e%2e;/admin"}, want: Denied, why: NoRule},
		"escaped-slash":     {story: sniffed, reason: "no rule could be sure of it", q: Question{Caller: "shop/http-0", URL: "http://api/v1/a%2Fb"}, want: Denied, why: EscapedSlash, noChange: true},
		"not-http":          {story: only, reason: "the port is declared", q: Question{Caller: "shop/buyer-0", URL: "https://store:80/"}, want: Denied, why: NotHTTP, noChange: true},
		"tcp-only-for-some": {story: only, reason: "http rules open no port 7000", q: Question{Caller: "shop/buyer-0", URL: "tcp://store:7000"}, want: Denied, why: NoGrant},

		"scaled-to-zero":  {story: "scaled-to-zero", reason: "the way there is kept", q: Question{Caller: "shop/buyer-0", URL: "http://store/"}, want: Allowed, why: NoEndpoint},
		"scaled-no-grant": {story: "scaled-to-zero", reason: "but not for everybody", q: Question{Caller: "shop/thief-0", URL: "http://store/"}, want: Denied, why: NoMeshServers, noChange: true},

		"allow-from-namespace":  {story: allowFrom, reason: "the namespace lists the caller's", q: Question{Caller: "front/web-0", Method: "POST", URL: "http://store.shop/x"}, want: Allowed, why: ByRule},
		"allow-from-tcp":        {story: allowFrom, reason: "over TCP too", q: Question{Caller: "front/web-0", URL: "tcp://store.shop:3306"}, want: Allowed, why: ByTCPGrant},
		"allow-from-neighbour":  {story: allowFrom, reason: "another namespace, whose name begins alike", q: Question{Caller: "front2/web-0", URL: "http://store.shop/x"}, want: Denied, why: NoGrant},
		"allow-from-service":    {story: allowFrom, reason: "the Service overrides its namespace", q: Question{Caller: "front/web-0", URL: "http://admin.shop/"}, want: Denied, why: NoGrant},
		"allow-from-account":    {story: allowFrom, reason: "for one account", q: Question{Caller: "ops/operator-0", URL: "http://admin.shop/"}, want: Allowed, why: ByRule},
		"allow-from-nobody":     {story: allowFrom, reason: "an empty list is said too", q: Question{Caller: "front/web-0", URL: "http://closed.shop/"}, want: Denied, why: NoGrant},
		"allow-from-overridden": {story: allowFrom, reason: "a TrafficTarget speaks about the account", q: Question{Caller: "ops/operator-0", URL: "http://books-admin.shop/"}, want: Denied, why: NoGrant},
		"allow-from-smi":        {story: allowFrom, reason: "and says who may", q: Question{Caller: "front/buyer-0", URL: "http://books.shop/books"}, want: Allowed, why: ByRule},
		"service-enforced":      {story: byService, reason: "the Service is stricter than its namespace", q: Question{Caller: "front/app-0", URL: "http://admin.open/"}, want: Denied, why: NoGrant},
		"service-permissive":    {story: byService, reason: "the Service is more open than its namespace", q: Question{Caller: "front/app-0", URL: "http://public.closed/"}, want: Allowed, why: PermissiveMode},
		"service-conflict":      {story: byService, reason: "another Service closes one of the pods", q: Question{Caller: "front/app-0", URL: "http://shared-one.closed/"}, want: Denied, why: NoGrant},
		"strict-caller":         {story: wantMTLS, reason: "pods without a proxy get nothing of it", q: Question{Caller: "strict/app-0", URL: "http://web.shop/"}, want: Allowed, why: PermissiveMode},
		"strict-caller-alone":   {story: wantMTLS, reason: "nobody there has a proxy", q: Question{Caller: "strict/app-0", URL: "http://old.shop/"}, want: Denied, why: MutualTLSWanted},
		"strict-caller-address": {story: wantMTLS, reason: "nor by the address", q: Question{Caller: "strict/app-0", URL: "http://10.1.3.3:9090/"}, want: Denied, why: MutualTLSWanted},
		"strict-pod":            {story: wantMTLS, reason: "the pod says so itself", q: Question{Caller: "anyone/careful-0", URL: "http://old.shop/"}, want: Denied, why: MutualTLSWanted, noChange: true},
		"strict-caller-peers":   {story: wantMTLS, reason: "a headless name of both kinds", q: Question{Caller: "strict/app-0", URL: "http://peers.shop:8080/"}, want: Partly, why: MutualTLSWanted},
		"loose-caller":          {story: wantMTLS, reason: "it says that it may", q: Question{Caller: "strict/loose-0", URL: "http://old.shop/"}, want: Allowed, why: PlainServer},
		"plain-to-port":         {story: plainText, reason: "this port takes it", q: Question{Caller: "joining/old", URL: "http://10.1.1.1:8080/"}, want: Allowed, why: PermissiveMode},
		"plain-to-strict-port":  {story: plainText, reason: "this one does not", q: Question{Caller: "joining/old", URL: "http://10.1.1.1:8081/"}, want: Denied, why: PlainRefused, noChange: true},
		"plain-to-strict-pod":   {story: plainText, reason: "the pod says so itself", q: Question{Caller: "joining/old", URL: "http://10.1.1.2:8080/"}, want: Denied, why: PlainRefused, noChange: true},

		"partly":              {story: "shop", reason: "one of two kinds of server allows it", q: Question{Caller: "deploy/buyer", Namespace: "shop", Method: "POST", URL: "http://store/orders", Headers: []string{"x-customer: 7"}}, want: Partly, why: NoRule},
		"manifests":           {story: "shop", reason: "without any cluster", q: Question{Caller: "deploy/buyer", Namespace: "shop", URL: "http://store/books"}, want: Allowed, why: ByRule},
		"alias":               {story: "shop", reason: "an ExternalName of a Service is that Service", q: Question{Caller: "deploy/buyer", Namespace: "shop", URL: "http://alias/books"}, want: Allowed, why: ByRule},
		"alias-out":           {story: "shop", reason: "one of a name outside is egress", q: Question{Caller: "deploy/buyer", Namespace: "shop", URL: "https://partner"}, want: Allowed, why: EgressAllowed},
		"add-source":          {story: "shop", reason: "two targets lack the caller", q: Question{Caller: "sa/db", Namespace: "shop", URL: "http://store/books/1"}, want: Denied, why: NoGrant},
		"statefulset":         {story: "shop", reason: "by the name of its pod", q: Question{Caller: "sa/store-v1", Namespace: "shop", URL: "tcp://db-0.db.shop:5432"}, want: Allowed, why: ByTCPGrant},
		"headless-half":       {story: "shop", reason: "behind the name is a pod without a proxy too", q: Question{Caller: "sa/store-v1", Namespace: "shop", URL: "tcp://db:5432"}, want: Allowed, why: ByTCPGrant},
		"plain-to-enforced":   {story: "shop", reason: "a caller outside the mesh has no name", q: Question{Caller: "deploy/legacy", Namespace: "plain", URL: "http://store.shop/books"}, want: Denied, why: PlainRefused, noChange: true},
		"plain-to-open":       {story: "shop", reason: "it says so", q: Question{Caller: "plain/legacy-0", URL: "http://web.open/"}, want: Allowed, why: PermissiveMode},
		"plain-to-permissive": {story: "shop", reason: "permissive alone takes mutual TLS only", q: Question{Caller: "plain/legacy-0", URL: "http://web.half-open/"}, want: Denied, why: PlainRefused},
		"plain-to-plain":      {story: "shop", reason: "the mesh has no part in it", q: Question{Caller: "plain/legacy-0", URL: "http://legacy"}, want: Allowed, why: NoProxies},
		"uninjected-caller":   {story: "shop", reason: "a pod of the mesh without a proxy is outside", q: Question{Caller: "shop/refuses", URL: "http://store/books"}, want: Denied, why: PlainRefused, noChange: true},
		"excluded-port":       {story: "shop", reason: "round the proxy means without a name", q: Question{Caller: "deploy/batch", Namespace: "shop", URL: "https://store:8443"}, want: Denied, why: PlainRefused, noChange: true},
		"server-without":      {story: "shop", reason: "nothing could enforce it", q: Question{Caller: "deploy/buyer", Namespace: "shop", URL: "http://unmeshed"}, want: Denied, why: NoMeshServers, noChange: true},
		"no-pods-yet":         {story: "shop", reason: "an account without pods asks as its first pod will", q: Question{Caller: "sa/future", Namespace: "shop", URL: "http://store/books"}, want: Denied, why: NoGrant},
		"headless-no-egress":  {story: "shop", reason: "a headless name without a grant leaves in plain text, and is refused", q: Question{Caller: "deploy/buyer", Namespace: "shop", URL: "tcp://db-0.db:5432"}, want: Denied, why: PlainRefused},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := load(t, tc.story)
			a, err := s.world(t).Call(tc.q)
			if err != nil {
				t.Fatal(err)
			}
			if a.Verdict != tc.want || a.Reason != tc.why {
				t.Errorf("%s: %s, %s; want %s, %s", tc.reason, a.Verdict, a.Reason, tc.want, tc.why)
			}
			text := fmt.Sprintf("# %s: %s\n# %s %s %s %s\n\n%s", tc.story, tc.reason, tc.q.Caller, tc.q.Method, tc.q.URL, strings.Join(tc.q.Headers, ", "), a.Text())
			golden.Compare(t, filepath.Join("testdata", "calls", name+".golden.txt"), []byte(text))
			if a.Verdict == Allowed {
				return
			}
			if applicable := a.Change != nil && (a.Change.Command != "" || a.Change.YAML != ""); applicable == tc.noChange {
				t.Fatalf("%s: change %+v", tc.reason, a.Change)
			}
			if !tc.noChange {
				again, err := s.apply(t, a.Change).world(t).Call(tc.q)
				if err != nil || again.Verdict != Allowed {
					t.Errorf("%s: with the change that it proposes it is still %s (%v):\n%s", tc.reason, again.Verdict, err, again.Text())
				}
			}
		})
	}
}

func TestCallCannotAnswer(t *testing.T) {
	cases := map[string]struct {
		reason string
		q      Question
		says   string
	}{
		"no pod":        {reason: "a typing error", q: Question{Caller: "shop/nobody", URL: "http://store"}, says: "there is no pod shop/nobody"},
		"no deployment": {reason: "a typing error", q: Question{Caller: "deploy/nobody", Namespace: "shop", URL: "http://store"}, says: "there is no Deployment shop/nobody"},
		"no namespace":  {reason: "a typing error", q: Question{Caller: "sa/x", Namespace: "nowhere", URL: "http://store"}, says: "there is no namespace nowhere"},
		"odd caller":    {reason: "the forms are told", q: Question{Caller: "a/b/c", URL: "http://store"}, says: "deploy/NAME"},
		"other mesh":    {reason: "that is nobody here", q: Question{Caller: "spiffe://other/ns/shop/sa/x", URL: "http://store"}, says: "spiffe://cluster.local"},
		"no service":    {reason: "what there is is told", q: Question{Caller: "shop/buyer-0", URL: "http://stor"}, says: "it has alias, db, partner, store, unmeshed"},
		"no host":       {reason: "the pod does not exist", q: Question{Caller: "shop/buyer-0", URL: "http://db-9.db.shop:5432"}, says: "no such Service or pod in namespace shop"},
		"nowhere":       {reason: "it can only be the cluster's", q: Question{Caller: "shop/buyer-0", URL: "http://a.nowhere.svc"}, says: "there is no namespace nowhere"},
		"no port":       {reason: "TCP has no usual one", q: Question{Caller: "shop/buyer-0", URL: "tcp://db"}, says: "name the port"},
		"bad port":      {reason: "too large", q: Question{Caller: "shop/buyer-0", URL: "http://db:70000"}, says: "1 to 65535"},
		"bad scheme":    {reason: "the mesh carries no such thing", q: Question{Caller: "shop/buyer-0", URL: "udp://db:53"}, says: "use http, https or tcp"},
		"no URL":        {reason: "no host", q: Question{Caller: "shop/buyer-0", URL: ""}, says: "not a host"},
		"bad header":    {reason: "no colon", q: Question{Caller: "shop/buyer-0", URL: "http://store", Headers: []string{"x"}}, says: "name: value"},
	}
	w := load(t, "shop").world(t)
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			a, err := w.Call(tc.q)
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: answered %+v, %v; want the error %q", tc.reason, a, err, tc.says)
			}
		})
	}
}

func TestPod(t *testing.T) {
	w := load(t, "shop").world(t)
	var out strings.Builder
	for _, name := range []string{
		"shop/buyer-0", "shop/host", "shop/refuses", "shop/misspelt", "shop/older-5d5f-x",
		"asking/quiet", "asking/asks", "plain/legacy-0", "plain/left",
	} {
		ns, pod, _ := strings.Cut(name, "/")
		a, err := w.Pod(ns, pod)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s\n", a.Text())
	}
	golden.Compare(t, "testdata/pods.golden.txt", []byte(out.String()))
	if _, err := w.Pod("shop", "nobody"); err == nil {
		t.Error("a pod that does not exist has an answer")
	}
}
