import com.sun.net.httpserver.HttpsConfigurator;
import com.sun.net.httpserver.HttpsExchange;
import com.sun.net.httpserver.HttpsParameters;
import com.sun.net.httpserver.HttpsServer;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.cert.CRL;
import java.security.cert.CertStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.cert.CertificateParsingException;
import java.security.cert.CollectionCertStoreParameters;
import java.security.cert.PKIXBuilderParameters;
import java.security.cert.PKIXRevocationChecker;
import java.security.cert.X509CertSelector;
import java.security.cert.X509Certificate;
import java.security.cert.CertPathBuilder;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.ArrayList;
import java.util.Base64;
import java.util.EnumSet;
import java.util.List;
import java.util.regex.Pattern;
import javax.net.ssl.CertPathTrustManagerParameters;
import javax.net.ssl.KeyManager;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.TrustManagerFactory;

/**
 * An agent on the JDK's own TLS, with revocation lists checked. TRUST is PEM: the roots, and the lists of every CA.
 *
 * <pre>
 * Agent get URL TRUST CHAIN KEY ...   asks as one agent after the other ("" for CHAIN and KEY: as nobody), and prints
 *                                     the answer, or the exception's message, of each on a line
 * Agent serve TRUST CHAIN KEY         prints its port, and answers with the caller's SPIFFE ID
 * </pre>
 */
public final class Agent {
    private static final char[] NO_PASSWORD = new char[0];

    public static void main(String[] a) throws Exception {
        if (a[0].equals("get")) {
            for (int i = 3; i < a.length; i += 2) {
                System.out.println(get(URI.create(a[1]), context(a[2], a[i], a[i + 1])));
            }
        } else {
            serve(context(a[1], a[2], a[3]));
        }
    }

    private static String get(URI url, SSLContext context) throws Exception {
        HttpClient client = HttpClient.newBuilder().sslContext(context).version(HttpClient.Version.HTTP_1_1).build();
        try {
            HttpRequest request = HttpRequest.newBuilder(url).build();
            return client.send(request, HttpResponse.BodyHandlers.ofString()).body();
        } catch (IOException error) {
            return error.getMessage();
        }
    }

    private static void serve(SSLContext context) throws Exception {
        HttpsServer server = HttpsServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
        server.setHttpsConfigurator(new HttpsConfigurator(context) {
            @Override
            public void configure(HttpsParameters parameters) {
                SSLParameters ours = context.getDefaultSSLParameters();
                ours.setNeedClientAuth(true);
                parameters.setSSLParameters(ours);
            }
        });
        server.createContext("/", exchange -> {
            HttpsExchange secure = (HttpsExchange) exchange;
            byte[] body = spiffe((X509Certificate) secure.getSSLSession().getPeerCertificates()[0]).getBytes();
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
        System.out.println(server.getAddress().getPort());
    }

    private static String spiffe(X509Certificate certificate) throws IOException {
        try {
            for (List<?> name : certificate.getSubjectAlternativeNames()) {
                if (name.get(0).equals(6)) {
                    return (String) name.get(1);
                }
            }
            return "";
        } catch (CertificateParsingException error) {
            throw new IOException(error);
        }
    }

    private static SSLContext context(String trusted, String chain, String key) throws Exception {
        KeyStore roots = empty();
        for (Certificate root : certificates(trusted)) {
            roots.setCertificateEntry(Integer.toString(roots.size()), root);
        }
        PKIXBuilderParameters path = new PKIXBuilderParameters(roots, new X509CertSelector());
        List<CRL> lists = new ArrayList<>();
        for (byte[] der : blocks(trusted, "X509 CRL")) {
            lists.add(CertificateFactory.getInstance("X.509").generateCRL(new ByteArrayInputStream(der)));
        }
        path.addCertStore(CertStore.getInstance("Collection", new CollectionCertStoreParameters(lists)));
        path.setRevocationEnabled(!lists.isEmpty());
        PKIXRevocationChecker checker = (PKIXRevocationChecker) CertPathBuilder.getInstance("PKIX").getRevocationChecker();
        checker.setOptions(EnumSet.of(PKIXRevocationChecker.Option.PREFER_CRLS, PKIXRevocationChecker.Option.NO_FALLBACK));
        if (!lists.isEmpty()) {
            path.addCertPathChecker(checker);
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(new CertPathTrustManagerParameters(path));

        KeyManager[] own = null;
        if (!chain.isEmpty()) {
            PrivateKey secret = KeyFactory.getInstance("EC")
                .generatePrivate(new PKCS8EncodedKeySpec(blocks(key, "PRIVATE KEY").get(0)));
            KeyStore store = empty();
            store.setKeyEntry("own", secret, NO_PASSWORD, certificates(chain).toArray(new Certificate[0]));
            KeyManagerFactory keys = KeyManagerFactory.getInstance("PKIX");
            keys.init(store, NO_PASSWORD);
            own = keys.getKeyManagers();
        }
        SSLContext context = SSLContext.getInstance("TLSv1.3");
        context.init(own, trust.getTrustManagers(), null);
        return context;
    }

    private static KeyStore empty() throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        return store;
    }

    private static List<Certificate> certificates(String file) throws Exception {
        List<Certificate> found = new ArrayList<>();
        for (byte[] der : blocks(file, "CERTIFICATE")) {
            found.add(CertificateFactory.getInstance("X.509").generateCertificate(new ByteArrayInputStream(der)));
        }
        return found;
    }

    private static List<byte[]> blocks(String file, String kind) throws IOException {
        String text = Files.readString(Path.of(file));
        List<byte[]> found = new ArrayList<>();
        Pattern.compile("-----BEGIN " + kind + "-----([^-]*)-----END " + kind + "-----").matcher(text).results()
            .forEach(block -> found.add(Base64.getMimeDecoder().decode(block.group(1))));
        return found;
    }

    private Agent() {}
}
