import java.io.Reader;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import javax.script.AbstractScriptEngine;
import javax.script.Bindings;
import javax.script.ScriptContext;
import javax.script.ScriptEngine;
import javax.script.ScriptEngineFactory;
import javax.script.SimpleBindings;

/**
 * Stands in for the JavaScript engine that Java lost in version 15.
 *
 * The last thing SPICE does is to hand its finished JSON to JavaScript for indentation: it puts "jsonString", runs one
 * fixed script and gets "result". Without an engine it ends in a NullPointerException after all the work is done. This
 * engine runs no script; it returns the JSON as it is.
 *
 * Compiled by: javac --release 8 PlainJson.java
 */
public final class PlainJson extends AbstractScriptEngine implements ScriptEngineFactory {
    @Override
    public Object eval(String script, ScriptContext context) {
        Object json = context.getAttribute("jsonString", ScriptContext.ENGINE_SCOPE);
        context.setAttribute("result", json, ScriptContext.ENGINE_SCOPE);
        return json;
    }

    @Override
    public Object eval(Reader script, ScriptContext context) {
        return eval("", context);
    }

    @Override
    public Bindings createBindings() {
        return new SimpleBindings();
    }

    @Override
    public ScriptEngineFactory getFactory() {
        return this;
    }

    @Override
    public ScriptEngine getScriptEngine() {
        return new PlainJson();
    }

    @Override
    public List<String> getNames() {
        return Arrays.asList("JavaScript");
    }

    @Override
    public List<String> getExtensions() {
        return Collections.emptyList();
    }

    @Override
    public List<String> getMimeTypes() {
        return Collections.emptyList();
    }

    @Override
    public String getEngineName() {
        return "captune plain JSON";
    }

    @Override
    public String getEngineVersion() {
        return "1";
    }

    @Override
    public String getLanguageName() {
        return "none";
    }

    @Override
    public String getLanguageVersion() {
        return "1";
    }

    @Override
    public Object getParameter(String key) {
        return null;
    }

    @Override
    public String getMethodCallSyntax(String object, String method, String... arguments) {
        return "";
    }

    @Override
    public String getOutputStatement(String text) {
        return "";
    }

    @Override
    public String getProgram(String... statements) {
        return "";
    }
}
